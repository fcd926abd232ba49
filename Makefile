# PageWright storage. `make run` serves, `make test` tests, `make help` lists the rest.

BIN      := bin/pagewright-storage
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
STATIC   := go build -ldflags "-s -w -X main.version=$(VERSION)"
# Labels of the image. A remote's URL can hold a password: it stays out.
REVISION := $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)
SOURCE   ?= $(shell git config --get remote.origin.url 2>/dev/null | sed 's|//[^/@]*@|//|')
RACETEST := $(if $(shell command -v $${CC:-cc} 2>/dev/null),CGO_ENABLED=1 go test -race,go test)
FUZZTIME ?= 60s

# The object stores that are built in: make build BACKENDS="nfs s3" leaves the
# others out. gRPC, the other way to Google's store, is never built in.
BACKENDS ?= nfs s3 azure gcs
ifneq ($(filter-out nfs s3 azure gcs,$(BACKENDS)),)
$(error BACKENDS="$(BACKENDS)": each must be one of nfs s3 azure gcs)
endif
EMPTY    :=
COMMA    := ,
TAGS     := disable_grpc_modules$(subst $(EMPTY) $(EMPTY),,$(patsubst %,$(COMMA)no_%,$(filter-out $(BACKENDS),s3 azure gcs)))
# The same flags for all, so that nothing is compiled twice.
export GOFLAGS := $(GOFLAGS) -trimpath -tags=$(TAGS)
export CGO_ENABLED := 0

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

.PHONY: help run build arm64 test test-a-to-l test-m-to-z test-packages test-integration test-stores test-real-stores test-beside-stores test-process test-in-trouble test-in-place test-machines test-images test-torture lint fuzz bench docker-build docker-up docker-down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## build and serve on 127.0.0.1, port 8080, with ./data as the store; PAGEWRIGHT_LISTEN= for all addresses
	@mkdir -p data
	PAGEWRIGHT_LISTEN="$${PAGEWRIGHT_LISTEN-127.0.0.1}" PAGEWRIGHT_NFS_BASE_PATH=./data $(BIN)

build: ## build the static binary bin/pagewright-storage; BACKENDS="nfs s3" leaves others out
	$(STATIC) -o $(BIN) .

arm64: ## build and vet for the other architecture
	GOARCH=arm64 $(STATIC) -o bin/pagewright-storage-arm64 .
	GOARCH=arm64 go vet .

# Most tests of the package wait for a disk or a process, so its two halves run side by side.
HALF := ^Test[M-Z]

test: ## run the tests that need nothing but Go
	$(RACETEST) -c -o bin/storage.test .
	$(MAKE) -k -j 2 -O test-a-to-l test-m-to-z test-packages

test-a-to-l:
	$(CURDIR)/bin/storage.test -test.timeout 30m -test.skip '$(HALF)'

test-m-to-z:
	$(CURDIR)/bin/storage.test -test.timeout 30m -test.run '$(HALF)'

test-packages:
	$(RACETEST) $$(go list ./... | grep storage/)

lint: ## gofmt, vet, staticcheck, govulncheck, go mod tidy
	@out=$$(gofmt -l .); test -z "$$out" || { echo "gofmt: $$out"; exit 1; }
	go vet ./...
	go vet -tags $(TAGS),integration . ./test/...
	cd bench && go vet ./... && go mod tidy -diff
	go vet -tags disable_grpc_modules,no_s3,no_azure,no_gcs .
	go mod tidy -diff
	go run $(STATICCHECK) ./...
	@sh ./.ci/govulncheck $(GOVULNCHECK)

# Without the object stores: their SDKs would be instrumented too, for minutes.
fuzz: ## run each fuzz target for FUZZTIME
	@for f in $$(go test -tags no_s3,no_azure,no_gcs -list '^Fuzz' . | grep '^Fuzz'); do \
		go test -tags no_s3,no_azure,no_gcs -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) . || exit 1; done

test-integration: test-stores test-process test-machines test-images ## all of the four (root, Debian; they install what is missing)

test-stores: ## the contract and the API on real object stores, JWTs of a real OpenID provider, the metrics in a real Prometheus, the OpenAPI document, the manifests, the commands of the pages
	sh test/install
	sh test/tools.sh
	go test -tags $(TAGS),integration -c -o bin/integration.test .
	$(MAKE) -k -j 2 -O test-real-stores test-beside-stores

test-real-stores:
	$(CURDIR)/bin/integration.test -test.timeout 40m -test.run RealStores

test-beside-stores:
	$(CURDIR)/bin/integration.test -test.timeout 40m -test.run 'Integration|TestLabelMove' -test.skip RealStores
	cd test/monitoring && go test -count=1 .
	cd test/contract && go test -count=1 .
	cd test/issuer && go test -count=1 .
	cd test/kubernetes && go test -count=1 .

test-process: ## the real binary traced, killed, short of calls and memory, among clients that misbehave, over TLS, behind proxies and under systemd
	sh test/install
	sh test/tools.sh
	$(MAKE) -k -j 2 -O test-in-trouble test-in-place

test-in-trouble:
	go test -tags $(TAGS),integration -count=1 -timeout 30m -p 1 ./test/trace ./test/faults ./test/soak ./test/clients ./test/memory

test-in-place: # these mostly wait
	go test -tags $(TAGS),integration -count=1 -timeout 30m -p 1 ./test/tls ./test/deploy ./test/access

test-machines: ## real NFS mounts and power cuts, in machines with a kernel of their own
	sh test/install
	go test -tags $(TAGS),integration -count=1 -timeout 40m -p 2 ./test/vm ./test/nfs ./test/powercut

test-images: ## the container images and both compose files, in a private Docker engine
	sh test/install
	go test -tags $(TAGS),integration -count=1 -timeout 40m ./test/container

test-torture: ## the long form: at least 100 power cuts, 200 replays, ten minutes of soak, races of labels (hours)
	sh test/install
	sh test/tools.sh
	go test -tags $(TAGS),torture -count=1 -timeout 6h -p 1 -v ./test/...
	go test -tags $(TAGS),integration,torture -count=1 -timeout 4h -v -run 'LabelRaces|ClientOverABadLine|PullThatIsCut|RealStoresCopy' .

bench: ## measure beside the peers, into bench/results (root; about half an hour)
	bench/run

docker-build: ## build the image pagewright-storage:VERSION, of the same BACKENDS as build
	DOCKER_BUILDKIT=1 docker build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) --build-arg SOURCE=$(SOURCE) --build-arg TAGS=$(TAGS) -t pagewright-storage:$(VERSION) -t pagewright-storage:latest .

docker-up: ## build and start the service and an NFS server, on port 8080 (compose.yaml)
	VERSION=$(VERSION) REVISION=$(REVISION) SOURCE=$(SOURCE) deploy/compose up -d --build

docker-down: ## stop and remove what docker-up started; the data stays in its volume
	VERSION=$(VERSION) deploy/compose down

clean: ## remove what was built
	rm -rf bin
