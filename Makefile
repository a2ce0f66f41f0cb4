# handrail: `make` prints the verbs.
SHELL := /bin/bash
GO    ?= go
BIN   := bin/handrail
export CGO_ENABLED := 0

.PHONY: help
help: ## print these verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/handrail and bin/handrail-node
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '-s -w$(if $(VERSION), -X main.version=$(VERSION))' -o bin/ ./cmd/handrail ./cmd/handrail-node
	@$(BIN) carry bin/handrail-node

.PHONY: packages
packages: build ## deb and rpm packages in bin/packages; the same commit gives the same bytes (VERSION names a release)
	@bash packaging/build.sh bin bin/packages

.PHONY: run
run: build ## build and start everything on this machine, no configuration
	@exec $(BIN) up

.PHONY: demo
demo: build ## three lab hosts, four people and a short story, in a folder of its own
	@exec $(BIN) demo

.PHONY: test
test: ## all tests; installs what they need from Debian's packages and npm, where it may
	@bash test/need.sh
	$(GO) vet ./...
	$(GO) test -timeout 20m ./test/spine ./... # the longest first, beside all others

.PHONY: test-offline
test-offline: ## the server is killed, a voucher opens a host, the server comes back (3 min, root)
	HANDRAIL_TEST_OFFLINE=1 $(GO) test ./test/spine -run TestTheServerIsGone -v -count=1

.PHONY: test-servers
test-servers: ## several servers over one PostgreSQL, killed and cut off in turns, RUNS times (default 20)
	@bash test/need.sh
	HANDRAIL_TEST_RUNS=$${RUNS:-20} $(GO) test -count=1 -timeout 30m -run 'TestServersThatAreKilled|TestTwoServers|TestALeader|TestWorkThatALeader|Standby' -v ./internal/foundation/store
	HANDRAIL_TEST_LONG=1 $(GO) test -v -count=1 -timeout 30m -run 'Cut|Gone|OutOfReach|Third|Standby|Company|TheNetwork' ./test/servers
	$(GO) test -v -count=$${RUNS:-20} -timeout 40m -run TwoServers ./test/servers

.PHONY: test-sim
test-sim: ## simulated weeks with 200 hosts, SEEDS of them (default 20), ten hours of work a day
	HANDRAIL_SIM_SEEDS=$${SEEDS:-20} HANDRAIL_SIM_HOURS=$${HOURS:-10} $(GO) test ./test/sim -v -count=1 -timeout 4h

.PHONY: test-kernels
test-kernels: build ## hosts with other kernels, cgroups and roots, each a real machine: every vmlinuz* in KERNELS, or what apt has (5 min each, root)
	@bash test/kernels/get.sh $${KERNELS:-$(CURDIR)/bin/kernels}
	HANDRAIL_TEST_KERNELS=$${KERNELS:-$(CURDIR)/bin/kernels} $(GO) test ./test/kernels -v -count=1 -timeout 3h

.PHONY: test-faults
test-faults: ## every role killed at RUNS random points of real work (default 1000), 10,000 strangers at each port, a slow disk (1.5 h, root); TALLY=file goes on where it was interrupted
	@bash test/need.sh
	HANDRAIL_TEST_RUNS=$${RUNS:-1000} HANDRAIL_TEST_TALLY=$(if $(TALLY),$(abspath $(TALLY))) $(GO) test ./test/spine -run 'TestNothingIsLostWhoeverIsKilled|Strangers|TestAnErasureThatIsKilled|TestASlowDisk' -v -count=1 -timeout 24h
	HANDRAIL_TEST_RUNS=$${RUNS:-1000} $(GO) test ./test/servers -run TestServersAndNodesThatAreKilled -v -count=1 -timeout 24h

.PHONY: race
race: ## the tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout 40m ./...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (default 10m)
	@bash test/fuzz.sh $${FUZZTIME:-10m}

.PHONY: bench
bench: build ## the numbers, beside OpenSSH in the same run
	$(GO) run ./test/bench

.PHONY: attack
attack: build ## the sandbox's attack suite on this kernel
	@$(BIN) doctor --attack

.PHONY: generate
generate: ## regenerate the API and the pages (needs protoc)
	@bash api/generate.sh

.PHONY: lint
lint: ## formatting and vet
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
