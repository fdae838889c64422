# difylb. `make help` explains itself.
SHELL       := /bin/bash
GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
REVISION    ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS     := -s -w -X difylb/pkg/daemon.Version=$(VERSION) -X difylb/pkg/daemon.Revision=$(REVISION)
BUILD       := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
FUZZTIME    ?= 20s

.DEFAULT_GOAL := help
.PHONY: help build up test lint race e2e fault cross fuzz bench gobench generate dashboard ui clean

help: ## list what can be made
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

build: ## lb-admin, lb-proxy and lbctl into bin/, static
	@mkdir -p bin
	$(BUILD) -o bin/ ./cmd/lb-admin ./cmd/lb-proxy ./cmd/lbctl

up: build ## the whole cluster on this machine, with stand-in Dify instances; Ctrl-C ends it
	bin/lbctl up -f examples/difylb.yaml --proxies 2 --demo

test: lint ui race cross e2e ## everything, with what it needs started by itself

lint: ## gofmt, vet, staticcheck
	@bad=$$(gofmt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); [ -z "$$bad" ] || { echo "gofmt would change:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

ui: ## the dashboard's types and tests, and that its assets are what its sources give
	@if command -v npm >/dev/null; then cd pkg/dashboard/ui && npm ci --ignore-scripts --no-audit --no-fund --silent && npm run --silent check; \
	else echo "npm is not installed: the dashboard is not built anew to compare; its checksums are tested all the same"; fi

race: ## unit and integration tests under the race detector
	$(GO) test -race -timeout 15m $$($(GO) list ./... | grep -vE '^difylb/(test/(e2e|docs|fault|ops|browser)|pkg/store)')
	$(GO) test -race -timeout 10m -tags portable ./pkg/proxy # as on systems that are not Linux: ordinary Read and Write
	$(GO) test -race -timeout 15m -p 1 ./pkg/store/... # one at a time: they stop and kill etcds, and wait for elections

e2e: build ## the cluster as real processes, driven by a real Dify SDK and a real browser, under faults; the commands of the docs
	@if command -v npm >/dev/null; then cd test/sdk && npm ci --no-audit --no-fund --silent; else echo "npm is not installed: the SDK scenarios are left out"; fi
	DIFYLB_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 15m ./test/e2e
	DIFYLB_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 15m -parallel 7 ./test/fault # clusters mostly wait
	DIFYLB_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 5m ./test/ops
	DIFYLB_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 5m ./test/browser
	DIFYLB_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 10m ./test/docs

fault: build ## every fault, with long streams, and the table of it; UPDATE=-update writes that into docs/reliability.md
	DIFYLB_BIN=$(CURDIR)/bin $(GO) test -v -count=1 -timeout 60m -parallel 3 ./test/fault -long $(UPDATE)

cross: ## compile for every platform that is promised
	@for os in linux darwin; do for arch in amd64 arm64; do \
		echo "$$os/$$arch"; CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch $(GO) build -trimpath -o /dev/null ./cmd/lb-proxy && \
		CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch $(GO) vet ./cmd/... || exit 1; done; done

fuzz: ## every fuzz target for FUZZTIME each
	@for pkg in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
		echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; done; done

bench: build ## the speed table of bench/, against nginx and HAProxy where they are installed
	$(GO) run ./bench/cmd/bench -quick -bin bin

gobench: ## the Go benchmarks of the packages
	$(GO) test -run '^$$' -bench . -benchmem ./pkg/...

generate: ## what the API says of its fields, docs/reference, and the Go code of proto/ (needs protoc)
	$(GO) test -count=1 ./pkg/admin -run '^TestMeanings_' -update
	$(GO) test -count=1 ./test/docs -run '^TestReferences_' -update
	sh proto/generate.sh

dashboard: ## pkg/dashboard/assets out of pkg/dashboard/ui (needs npm)
	cd pkg/dashboard/ui && npm ci --ignore-scripts --no-audit --no-fund --silent && npm run --silent build

clean: ## remove what was built; data/ stays
	rm -rf bin dist
