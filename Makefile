# Dormouse. On a fresh Debian machine with Go and gcc, as root:
#
#	make run     builds everything and starts a node in namespaces of its own, until Ctrl-C
#
# One set of build flags for everything: other tags or -race compile Kubernetes anew. For single go commands use them too:
#
#	eval "$(make -s env)"

VERSION       ?= v1.37.2+dormouse1
DESTDIR       ?= bin
BENCH_JSON    ?= build/bench.json
GOLANGCI_LINT ?= go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

TAGS := seccomp,netgo,osusergo,no_btrfs,no_devmapper,no_zfs,sqlite_omit_load_extension
export GOFLAGS     := -trimpath -buildvcs=false -tags=$(TAGS)
export CGO_ENABLED := 1

# The version that Kubernetes' own code reports.
COMMIT       := $(shell git rev-parse -q --verify HEAD 2>/dev/null)
KUBE_VERSION := $(foreach package,k8s.io/component-base/version k8s.io/client-go/pkg/version,\
	-X $(package).gitVersion=$(VERSION) -X $(package).gitMajor=1 -X $(package).gitMinor=37 \
	-X $(package).gitCommit=$(COMMIT) -X $(package).gitTreeState=clean)
STATIC  := -linkmode external -extldflags -static
LDFLAGS := -s -w $(STATIC) $(KUBE_VERSION)

.PHONY: build run test lint bench images clean deps env FORCE
.DEFAULT_GOAL := build

## Products

build: $(DESTDIR)/dormouse $(DESTDIR)/dormouse-rt

# The program with its files packed behind it.
PAYLOAD := build/dormouse-rt build/controllers.cwasm build/images/pause.tar.gz
$(DESTDIR)/dormouse: build/dormouse $(PAYLOAD)
	go run ./internal/payload/cmd/pack -o $@ $^

$(DESTDIR)/dormouse-rt: build/dormouse-rt
	install -D $< $@

# go build, modulebuild and images decide themselves what is out of date, and leave alone what is not.
build/dormouse: FORCE | deps
	go build -ldflags '$(LDFLAGS)' -o $@ ./cmd/dormouse

build/dormouse-rt: FORCE | deps
	go run ./packaging/rt -o build/rt
	GOFLAGS='$(GOFLAGS),dormouse_rt' go build -modfile=build/rt/rt.mod -ldflags '-s -w $(STATIC)' -o $@ ./cmd/dormouse-rt

build/controllers.cwasm: FORCE | deps
	go run ./wasmplane/module/cmd/modulebuild -o $@

images: build/images/pause.tar.gz
build/images/pause.tar.gz: $(wildcard packaging/images/*.go packaging/images/*/*) | deps
	go run ./packaging/images -o build/images

# make run starts a node with bin/dormouse-node; use it from another terminal too.
run: build images
	go build -o $(DESTDIR)/dormouse-node ./tests/node/cmd/dormouse-node
	$(DESTDIR)/dormouse-node run -binary $(DESTDIR)/dormouse -images build/images

## Checks

MODULE := github.com/dormouse-k8s/dormouse
# The race detector is for packages that do not bring Kubernetes or containerd along.
HEAVY := k8s\.io/(kubernetes|apiserver|client-go)/|github\.com/containerd/containerd/v2
test: build images
	@set -e; \
	list() { go list -test -f '{{.ImportPath}} {{join .Deps " "}}' ./... | grep -v '^$(MODULE)/tests/' | \
		awk -v heavy='$(HEAVY)' -v want="$$1" '$$1 ~ /\.test$$/ { sub(/\.test$$/, "", $$1); if (($$0 ~ heavy) == want) print $$1 }'; }; \
	set -x; \
	go vet ./...; \
	go test -race $$(list 0); \
	go test $$(list 1); \
	go test -count=1 -p=1 -timeout=60m ./tests/...

lint:
	@if [ -n "$$(gofmt -l $$(git ls-files '*.go'))" ]; then gofmt -d $$(git ls-files '*.go'); exit 1; fi
	$(GOLANGCI_LINT) run ./...
	shellcheck install.sh .ci/run

bench: build images
	go run ./tests/bench -json $(BENCH_JSON) -svg docs/memory.svg $(BENCH_FLAGS)

## Surroundings

# What building and testing needs, as file-or-program:package of Debian. Installed when missing, if we may.
NEEDED := gcc:gcc /usr/include/seccomp.h:libseccomp-dev pkg-config:pkg-config git:git \
	nft:nftables ip:iproute2 /bin/busybox:busybox-static zstd:zstd
test lint: NEEDED += curl:curl shellcheck:shellcheck mksh:mksh # for the scripts
test lint: deps
deps:
	@missing=; for need in $(NEEDED); do \
		what=$${need%%:*}; \
		case $$what in /*) [ -e "$$what" ] ;; *) command -v "$$what" >/dev/null ;; esac || missing="$$missing $${need#*:}"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
		echo "please install:$$missing" >&2; exit 1; \
	fi

env:
	@echo 'export GOFLAGS="$(GOFLAGS)" CGO_ENABLED=$(CGO_ENABLED)'

clean:
	rm -rf bin build
