.PHONY: build test race lint bench soak deploys demo ci clean

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

bench: ## against HAProxy and nginx; BENCH='-rounds 3 -only messages-64' for a part
	go run ./bench $(BENCH)

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
