# Commands for development. `make` alone lists them.

.PHONY: help run test lint loom fuzz coverage simulate e2e bench chaos soak

help:
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

run: ## build and start gateway, two auth-api replicas and an example service on https://localhost
	@exec scripts/run

test: ## run every test against the real programs, on private servers
	@exec scripts/test

lint: ## check formatting, clippy, direction of imports, shell scripts, alert rules, licences and sources of dependencies
	@exec scripts/lint

loom: ## run the models of what threads share without a lock in every interleaving
	@exec scripts/loom

fuzz: ## send requests generated from the OpenAPI document to every endpoint, then run every fuzz target; WHAT=schema or a target for one, SECONDS for each target
	@exec scripts/fuzz "$(WHAT)" "$(SECONDS)"

coverage: ## measure which lines of the parsers the unit tests and the corpora of the fuzz targets run, and fail below 95 % of any file
	@exec scripts/coverage

simulate: ## simulate the protocol of ended sessions with SEEDS seeds (10000), or print what happens with one SEED
	@exec scripts/simulate "$(SEEDS)" "$(SEED)"

e2e: ## test the production deployment in Docker under load: scaling, upgrades, crashes, restarts, with several gateways, on a Swarm and under systemd; WHAT=operations, gateways, faults, disasters, swarm or systemd for a part
	@exec scripts/e2e $(WHAT)

chaos: ## cause faults in two gateways, three replicas, PostgreSQL with a standby and Redis with Sentinels, on network namespaces, and check what clients observed; SECONDS (120), SEED, FAULTS for some kinds of faults. Needs root
	@exec scripts/chaos "$(SECONDS)" "$(SEED)" "$(FAULTS)"

soak: ## run the edge at a third of its capacity for MINUTES (240) and fail if memory, open files or latency rise or a request fails
	@exec scripts/soak "$(MINUTES)"

bench: ## benchmark beside nginx, haproxy and h2o into bench/RESULTS.md; WHAT=gateway, bodies, latency, configuration, decisions, identity, quotas, auth-api or faults for a part
	@exec scripts/bench $(WHAT)
