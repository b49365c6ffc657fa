#!/usr/bin/env bash
# Replaces the replicas of auth-api one by one with the image named in .prod.env, as docker/roll.sh says.
set -euo pipefail
cd "$(dirname "$0")/.."

exec docker/roll.sh auth-api
