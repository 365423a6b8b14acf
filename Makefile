# lambdad: make build | demo | test | check | bench
#
# Needs Go 1.26 or later, make and Python 3; after `go mod download` no network.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  = -s -w -X main.version=$(VERSION)
FUZZTIME ?= 10000x

# Debian packages without which some tests skip.
TEST_PACKAGES = e2fsprogs gcc gcc-aarch64-linux-gnu systemd qemu-system-x86
# Languages that tests run functions in, by command and package.
TEST_LANGUAGES = node:nodejs ruby:ruby javac:default-jdk-headless

# Where make install puts things; DESTDIR is put before all of them.
PREFIX     ?= /usr/local
BINDIR     ?= $(PREFIX)/bin
UNITDIR    ?= $(PREFIX)/lib/systemd
SYSCONFDIR ?= /etc

.PHONY: published install uninstall test-vm test-roots cycles build demo test test-hostile test-packages check race fuzz bench bench-full clean needs

needs:
	@v=$$($(GO) env GOVERSION 2>/dev/null | sed 's/^go//'); \
	 major=$${v%%.*}; rest=$${v#*.}; minor=$${rest%%.*}; minor=$${minor%%[!0-9]*}; \
	 if [ -z "$$v" ]; then echo "lambdad needs Go 1.26 or later: no go on the PATH (https://go.dev/dl/)"; exit 1; fi; \
	 if [ "$$major" -lt 1 ] || { [ "$$major" -eq 1 ] && [ "$$minor" -lt 26 ]; }; then \
	   echo "lambdad needs Go 1.26 or later: this is Go $$v (https://go.dev/dl/)"; exit 1; fi
	@command -v python3 >/dev/null || { echo "lambdad needs Python 3: no python3 on the PATH"; exit 1; }

## build: bin/lambdad, one static binary
build: needs
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/lambdad ./cmd/lambdad

## demo: a function with an extension, cold and warm, idled out; leaves nothing
demo: build
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/demo ./examples/demo
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/hello-extension ./examples/extension
	@bin/demo --lambdad bin/lambdad --extension bin/hello-extension

## test: every suite but the hostile one; what needs root skips with a reason without it
test: needs
	$(GO) test $(GOTESTFLAGS) -timeout 20m $$($(GO) list ./... | grep -v /integration/hostile)

## test-packages: install what tests skip without (root, Debian or Ubuntu)
test-packages:
	@missing=; for p in $(TEST_PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	for l in $(TEST_LANGUAGES); do command -v $${l%%:*} >/dev/null || missing="$$missing $${l#*:}"; done; \
	[ -z "$$missing" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; }

## test-hostile: code inside tries to break out and to starve everyone else (root)
test-hostile: needs
	$(GO) test $(GOTESTFLAGS) -timeout 20m -count=1 ./integration/hostile/...

## check: what CI holds beyond the tests
check: needs
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	GOOS=darwin $(GO) vet ./cmd/lambdad ./environment ./worker ./sandbox/...
	GOOS=linux GOARCH=arm64 $(GO) vet ./cmd/lambdad
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	$(GO) generate ./... && git diff --exit-code
	@$(MAKE) --no-print-directory race fuzz

# The integration tests run the built program, which is not the raced one.
# Where the detector itself fails, which it does now and then as threads end, what
# has not passed runs once more.
race:
	@out=$$(mktemp); run() { $(GO) test -race -timeout 30m $$($(GO) list ./... | grep -vE '/integration(/|$$)') >$$out 2>&1; }; \
	 if run; then cat $$out; rm $$out; exit 0; fi; cat $$out; \
	 if grep -q 'ThreadSanitizer: CHECK failed' $$out && ! grep -qE 'DATA RACE|^ *--- FAIL' $$out; then \
	   echo "the race detector itself failed: again"; run && { cat $$out; rm $$out; exit 0; }; cat $$out; fi; \
	 rm $$out; exit 1

# So many inputs, and not so long (10s): where the time is over while a worker is at
# one, Go now and then calls that a failure ("context deadline exceeded").
## fuzz: every fuzz target with FUZZTIME inputs each
fuzz:
	@for f in $$(grep -rlE '^func Fuzz' --include=*_test.go .); do \
	  d=$$(dirname $$f); \
	  for t in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$f | sed 's/func //'); do \
	    echo "fuzz $$d $$t"; $(GO) test -run '^$$' -fuzz "^$$t$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$d || exit 1; \
	  done; done

## bench: floors and lambdad in one run, into docs/performance.md (BENCHFLAGS="--quick --only warm,cold": parts, printed)
bench: build
	$(GO) run ./integration/bench --lambdad bin/lambdad $(if $(BENCHFLAGS),$(BENCHFLAGS),--write docs/performance)

## bench-full: the same and curves, in ten minutes
bench-full: build
	$(GO) run ./integration/bench --lambdad bin/lambdad --full $(if $(BENCHFLAGS),$(BENCHFLAGS),--write docs/performance)

## test-vm: sandboxtest on a stock kernel under emulated QEMU: cgroup v2 only, and without user namespaces
test-vm: needs
	$(GO) run ./integration/vm

## test-roots: lambdad on root file systems of other distributions (root): stock Debian and Alpine, or ROOTS=DIR:DIR
test-roots: needs
	roots="$(ROOTS)"; [ -n "$$roots" ] || roots=$$(integration/roots/stock.sh) && \
	LAMBDAD_TEST_ROOTS=$$roots $(GO) test -count=1 -v ./integration/roots

## cycles: 10,000 sandboxes created, used and destroyed, and what grew meanwhile (root)
cycles: needs
	LAMBDAD_CYCLES=10000 $(GO) test -count=1 -timeout 60m -v -run '^TestCycles$$' ./sandbox/namespace

# Files of an installation, below DESTDIR.
INSTALLED = $(BINDIR)/lambdad $(UNITDIR)/system/lambdad.service $(UNITDIR)/user/lambdad.service $(SYSCONFDIR)/apparmor.d/lambdad

## install: bin/lambdad, the units and the AppArmor profile, below DESTDIR and PREFIX
install: build
	install -D -m 0755 bin/lambdad $(DESTDIR)$(BINDIR)/lambdad
	@set -e; for f in systemd/lambdad.service:$(UNITDIR)/system/lambdad.service systemd/user/lambdad.service:$(UNITDIR)/user/lambdad.service \
	  apparmor/lambdad:$(SYSCONFDIR)/apparmor.d/lambdad; do \
	  to=$(DESTDIR)$${f#*:}; install -d "$${to%/*}"; echo "install packaging/$${f%%:*} $$to"; \
	  sed 's|@bindir@|$(BINDIR)|g' "packaging/$${f%%:*}" >"$$to"; chmod 0644 "$$to"; done
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
	@[ -n "$(DESTDIR)" ] || ! command -v apparmor_parser >/dev/null || apparmor_parser -r $(SYSCONFDIR)/apparmor.d/lambdad || \
	  echo "AppArmor did not take the profile: before version 4 it needs none"

## uninstall: stop the service and remove what install installed; PURGE=yes the data, too
uninstall:
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl disable --now lambdad.service || true
	@[ -n "$(DESTDIR)" ] || ! command -v apparmor_parser >/dev/null || [ ! -e $(SYSCONFDIR)/apparmor.d/lambdad ] || \
	  apparmor_parser -R $(SYSCONFDIR)/apparmor.d/lambdad || true
	rm -f $(addprefix $(DESTDIR),$(INSTALLED))
	@cd "$(DESTDIR)/" && for d in $(UNITDIR)/system $(UNITDIR)/user $(BINDIR) $(SYSCONFDIR)/apparmor.d; do \
	  rmdir $(if $(DESTDIR),-p) "./$$d" 2>/dev/null || true; done
	@[ -n "$(DESTDIR)" ] || rmdir $(UNITDIR) 2>/dev/null || true
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
	@if [ "$(PURGE)" = yes ]; then rm -rf $(DESTDIR)/var/lib/lambdad; \
	 elif [ -e $(DESTDIR)/var/lib/lambdad ]; then echo "kept: $(DESTDIR)/var/lib/lambdad (make uninstall PURGE=yes removes it)"; fi

## published: our runtime clients beside AWS's published ones (pip, npm, a C++ compiler, cmake)
PUBLISHED = bin/published
published: needs
	mkdir -p $(PUBLISHED)
	test -x $(PUBLISHED)/python/bin/python || { python3 -m venv $(PUBLISHED)/python && $(PUBLISHED)/python/bin/pip install -q awslambdaric==4.2.2; }
	test -d $(PUBLISHED)/node/node_modules/aws-lambda-ric || npm install --silent --prefix $(PUBLISHED)/node --ignore-scripts=false aws-lambda-ric@3.3.0
	LAMBDAD_AWS_PYTHON=$(CURDIR)/$(PUBLISHED)/python/bin/python LAMBDAD_AWS_NODE=$(CURDIR)/$(PUBLISHED)/node/node_modules/aws-lambda-ric \
	  $(GO) test -count=1 -v -tags published -run Published ./runtimes

clean:
	rm -rf bin
