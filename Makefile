.PHONY: build test race lint bench benchstat baseline soak deploys demo ci clean

build: ## bin/tproxy
	CGO_ENABLED=0 go build -trimpath -o bin/tproxy ./cmd/tproxy

test:
	go test ./...

race:
	go test -race $$(go list ./... | grep -v /internal/e2e)

lint:
	test -z "$$(gofmt -l .)"
	go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...

bench: ## against HAProxy, nginx and a relay in C, about 20 minutes; BENCH='-rounds 3 -only messages-64' for a part
	go run ./bench $(BENCH)

# What every session or message passes, on one processor. bench/baseline.txt is what it cost when it was last written down.
HOT := go test -run '^$$' -bench '^Benchmark(Choose|Lease|TryGetPut|TryGetMiss|ReportSuccess|Event|Observe|Record|Write|Prefixes|Sources|Rate|Rates)$$' \
	-benchmem -count 10 -benchtime 100ms -cpu 1 ./backend ./pool ./health ./proxy ./internal/access ./internal/admin ./internal/journal

benchstat: ## hot functions against the baseline, about 2 minutes
	mkdir -p bin
	$(HOT) >bin/bench.txt
	go tool -modfile=tools/go.mod benchstat bench/baseline.txt bin/bench.txt

baseline: ## write the baseline anew, on a quiet machine
	$(HOT) >bench/baseline.txt

MINUTES ?= 5
SEED ?= 0
RACE ?=
soak: ## sessions under faults, MINUTES=5 a test, SEED=… to repeat one, RACE=1 with the race detector in the proxy; as root it has a network namespace of its own
	$(if $(RACE),go build -race -o bin/tproxy-race ./cmd/tproxy)
	go test ./internal/e2e -count=1 -v -timeout 0 -run '^Test(Soak|Faulty|Hold|Spare|Reused)' -minutes $(MINUTES) -seed $(SEED) $(if $(RACE),-tproxy $(CURDIR)/bin/tproxy-race)

deploys: ## upgrades and reloads under load, the long form: docs/deploys.md
	go test ./internal/e2e -count=1 -v -timeout 20m -run 'LoseNobody|StoppedProcess' -deploys

demo:
	go run ./cmd/tproxy demo

ci:
	.ci/run

clean:
	rm -rf bin
