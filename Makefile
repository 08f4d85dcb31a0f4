# What there is to do. `make help` lists it.
# Everything that needs packages of the system installs what is missing first (as root, by apt).

GO      ?= $(or $(shell command -v go),/usr/local/go/bin/go)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.version=$(VERSION)
# Guests and agents of tests share the machine's processors; more packages at once only make each of them wait.
JOBS    ?= 2
BIN      = bin/drover
# Where the disks lie that bench-backup reads: 20 GB, made once.
IMAGES  ?= /var/cache/drover-bench/images

export GOFLAGS   = -trimpath
export GOTOOLCHAIN = local
export PATH := $(dir $(GO)):$(PATH)

.PHONY: help build demo demo-down test race soak soak-backup bench bench-vm bench-switch bench-backup gen lint deps clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## bin/drover
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/drover

deps: ## install the Debian packages that are missing
	scripts/install-deps

demo: deps build ## two sites, real VMs, the whole story; leaves it running
	$(BIN) lab demo

demo-down: build ## end the demo and leave nothing behind
	$(BIN) lab down --name demo

test: deps build lint ## every test
	scripts/s3server >/dev/null
	$(GO) test -p $(JOBS) -timeout 20m ./...

race: deps ## the tests under the race detector (slow: guests are not)
	$(GO) test -race -p $(JOBS) -timeout 40m ./...

soak: deps build ## long runs of what `test` runs shortly
	DROVER_SOAK=1 $(GO) test -p 1 -timeout 4h ./test/...

soak-backup: deps ## an hour of random backups, deletions, collections, copies, crashes and faults
	DROVER_SOAK=1 $(GO) test -run 'TestModel|TestCrashAnywhere|TestEveryAnswer|TestTogether|TestBitFlips|TestHostileStorage|TestCopyInterrupted' -timeout 3h ./internal/chunkstore

bench: bench-vm bench-switch bench-backup ## all benchmarks, with ratios against peers

bench-vm: deps build ## starting VMs, memory, state
	$(GO) run ./bench/vm -drover $(BIN) -out bench/results/vm.json

bench-switch: deps build ## the switch beside a Linux bridge and Open vSwitch
	$(GO) run ./bench/switch -out bench/results/switch.json

bench-backup: deps build ## the repository beside borg, restic, kopia, desync, qemu-img; guests that are backed up
	scripts/bench-images $(IMAGES)
	$(GO) run ./bench/backup -drover $(BIN) -images $(IMAGES) -out bench/results/backup.json

gen: ## regenerate what is generated
	scripts/generate

lint: ## formatting, vet, staticcheck, generated code is current
	@test -z "$$(gofmt -l api bench cmd internal test 2>/dev/null)" || { gofmt -l api bench cmd internal test; echo 'gofmt: run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	scripts/generate --check

clean: ## remove what was built
	rm -rf bin
