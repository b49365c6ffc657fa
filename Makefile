# Everything a developer does, one word each. `make` alone lists them.

.PHONY: help run test lint fuzz bench

help:
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

run: ## build and start gateway and two auth-api replicas on https://localhost
	@exec scripts/run

test: ## run every test against the real programs, on private servers
	@exec scripts/test

lint: ## formatting, clippy, shellcheck
	@exec scripts/lint

fuzz: ## throw what the OpenAPI document allows and forbids at every endpoint
	@exec scripts/fuzz

bench: ## measure side by side with peers into bench/RESULTS.md; WHAT=gateway or WHAT=decisions for a part
	@exec scripts/bench $(WHAT)
