# Everything a developer does, one word each. `make` alone lists them.

.PHONY: help run test lint fuzz e2e bench

help:
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

run: ## build and start gateway and two auth-api replicas on https://localhost
	@exec scripts/run

test: ## run every test against the real programs, on private servers
	@exec scripts/test

lint: ## formatting, clippy, shellcheck, alert rules, licences and sources of dependencies
	@exec scripts/lint

fuzz: ## throw what the OpenAPI document allows and forbids at every endpoint
	@exec scripts/fuzz

e2e: ## run the production deployment in Docker through everything that an operator does to it
	@exec scripts/e2e

bench: ## measure side by side with peers into bench/RESULTS.md; WHAT=gateway, decisions, auth-api or faults for a part
	@exec scripts/bench $(WHAT)
