# Every step runs only when something it needs has changed, and says little
# when all is well. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS += --no-print-directory

PREFIX ?= /usr/local
NODE   ?= node
CXX    ?= g++

# How much the long suites do; `make test` runs the same files with their short defaults.
SIM_RUNS    ?= 7000
MODEL_RUNS  ?= 300
CRASH_KILLS ?= 200

SOURCES := $(shell find src test scripts -name '*.ts' 2>/dev/null)
RUN     := $(NODE) dist/test/run.js

.PHONY: help deps demo-place deps-npm deps-test deps-demo deps-kernel deps-bench native build demo test check bench test-kernel \
        test-sim test-model test-crash install clean

help: ## this list
	@echo 'Lockstep: replicated block devices over NBD'; echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo; echo '  Arguments go through ARGS, for example: make bench ARGS="--rows W1,R1 --rounds 9"'

# ---- what has to be on the machine ------------------------------------------

deps: deps-npm deps-test deps-demo deps-kernel deps-bench ## install everything that any target needs

deps-npm:
	@scripts/setup/deps.sh npm
deps-test deps-demo deps-kernel deps-bench:
	@scripts/setup/deps.sh $(@:deps-%=%)

# ---- building ---------------------------------------------------------------

native: deps-npm native/build/loadgen ## the addon and the bench's load generator
	@scripts/setup/native.sh

native/build/loadgen: scripts/bench/loadgen.cc $(wildcard scripts/bench/loadgen-*.h)
	@mkdir -p native/build
	@echo 'building the load generator'
	@$(CXX) -std=c++17 -O2 -g -Wall -Wextra -Werror -o $@.tmp $< && mv $@.tmp $@

# tsc keeps what it knows in dist/.tsbuildinfo; dist/.built says when all of it was good.
# What sources that were moved or removed had become goes: a test among it would be run, and install takes it along.
dist/.built: $(SOURCES) tsconfig.json package-lock.json
	@mkdir -p dist
	@echo 'compiling TypeScript'
	@node_modules/.bin/tsc -p tsconfig.json --incremental --tsBuildInfoFile dist/.tsbuildinfo
	@cd dist && find src test scripts -name '*.js' | while read -r built; do \
	  [ -e "../$${built%.js}.ts" ] || rm -f "$$built" "$$built.map"; done
	@touch $@

dist/bin/lockstep dist/bin/lockstepd: scripts/setup/wrapper.sh
	@mkdir -p dist/bin
	@install -m 755 $< $@

build: deps-npm native ## compile everything below dist/ and native/build/
	@$(MAKE) -s dist/.built dist/bin/lockstep dist/bin/lockstepd

# ---- using it ---------------------------------------------------------------

demo-place:
	@scripts/setup/demo-place.sh

demo: demo-place deps-demo build ## two nodes, a filesystem, a snapshot, damage, a restore
	@$(NODE) dist/scripts/demo/demo.js $(ARGS)

bench: deps-bench build ## figures beside other servers; ARGS="--suite operations" (many, churn, ...): of every operation
	@$(NODE) dist/scripts/bench/bench.js $(ARGS)

test: deps-test build ## all tests, the long suites in their short form (minutes)
	@$(RUN) $(ARGS)

test-sim: deps-test build ## the seeded simulation in full: all operations, power losses, pairs (SIM_RUNS=7000: 10,000 runs)
	@LOCKSTEP_SIM_RUNS=$(SIM_RUNS) $(RUN) --timeout 7200 dist/test/sim $(ARGS)

test-model: deps-test build ## the model test against real daemons in full (MODEL_RUNS=300)
	@LOCKSTEP_MODEL_RUNS=$(MODEL_RUNS) $(RUN) --timeout 7200 --jobs 1 dist/test/model $(ARGS)

test-crash: deps-test build ## SIGKILLs under load in full (CRASH_KILLS=200)
	@LOCKSTEP_CRASH_KILLS=$(CRASH_KILLS) $(RUN) --timeout 7200 --jobs 1 dist/test/crash $(ARGS)

test-kernel: deps-kernel build ## ext4, xfs and btrfs on /dev/nbd0 in a User-Mode Linux guest
	@$(NODE) dist/test/kernel/run.js $(ARGS)

check: deps-npm ## types and lint
	@node_modules/.bin/tsc -p tsconfig.json --noEmit --incremental --tsBuildInfoFile dist/.tscheckinfo
	@node_modules/.bin/eslint -c .ci/eslint.config.js --cache --cache-location dist/.eslintcache src test scripts

install: build ## install below PREFIX (/usr/local); DESTDIR is honoured
	@scripts/setup/install.sh '$(DESTDIR)$(PREFIX)'

clean: ## remove what was built (node_modules stays)
	@rm -rf dist native/build .tap
