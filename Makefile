# make demo and make test are the two commands a newcomer needs; each sets up what it wants by itself.

HOST    := $(shell rustc -vV | sed -n 's/^host: //p')
TARGET  := $(HOST)
DIST    := dist
BUILT   := $(or $(CARGO_TARGET_DIR),target)
PREFIX  ?= /usr/local
CNI_BIN ?= /opt/cni/bin
ROOT    := $(shell [ "$$(id -u)" = 0 ] && echo yes)

# Debian's packages that the tests run for real: the servers, the reference plugins, and the tools to look with. The tests
# start their own servers, on ports and sockets of their own, and leave those of the system alone.
PACKAGES := etcd-server containerd runc containernetworking-plugins nftables iptables iproute2 strace podman openssl

.PHONY: build demo test bench soak fuzz lint golden install image deb deb-of-dist clean packages
.DEFAULT_GOAL := build

# Static executables: they run on any Linux of this architecture with nothing installed. The target is named so that
# build scripts and procedural macros stay dynamic.
STATIC := -C target-feature=+crt-static
# The plugin is read for every pod. It aborts on panic, so that nothing reads its unwind tables; packed relocations and
# segments are another twentieth of its size.
SMALL  := $(STATIC) -C link-arg=-Wl,-z,pack-relative-relocs,-z,noseparate-code,--no-eh-frame-hdr \
          -C link-arg=-Wl,-T,cni-plugin/no-unwinding.ld

# For another processor: make build TARGET=aarch64-unknown-linux-gnu DIST=dist/arm64, after "rustup target add" of it, with
# Debian's compiler for it (gcc-aarch64-linux-gnu).
ifneq ($(TARGET),$(HOST))
LINKER := CARGO_TARGET_$(shell echo $(TARGET) | tr a-z- A-Z_)_LINKER
export $(LINKER) ?= $(TARGET:%-unknown-linux-gnu=%-linux-gnu-gcc)
endif

build:
	RUSTFLAGS="$(SMALL)" cargo build --locked --target $(TARGET) --profile plugin -p cni-plugin -p ipam
	RUSTFLAGS="$(STATIC)" cargo build --locked --target $(TARGET) --release -p flanneld-rs
	@mkdir -p $(DIST)
	@for file in plugin/cni-plugin plugin/host-local release/flanneld-rs; do \
	  install $(BUILT)/$(TARGET)/$$file $(DIST)/.new && mv $(DIST)/.new $(DIST)/$${file#*/}; done
	@ls -l $(DIST)

# Demo and benchmark are harnesses around the executables in dist/: quickly built, and their own probes inside pods.
HARNESS := cargo run --quiet --locked --profile harness -p e2e --bin

demo: build
	@$(HARNESS) demo -- $(ARGS)

packages:
ifeq ($(ROOT),yes)
	@missing=""; for package in $(PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
else
	@echo "The tests program the kernel and need root: run 'sudo make test'. They use these Debian packages:"; \
	for package in $(PACKAGES); do dpkg -s $$package >/dev/null 2>&1 && echo "  $$package" || echo "  $$package (missing)"; done; exit 1
endif

test: packages build
	cargo test --locked --workspace

# Beside the plugin, what it cannot be faster than is measured: a process that does nothing but the kernel's part.
bench: packages build
	RUSTFLAGS="$(SMALL)" cargo build --locked --target $(TARGET) --profile plugin -p kernel --example attach
	@ATTACH=$(BUILT)/$(TARGET)/plugin/examples/attach $(HARNESS) bench -- $(ARGS)

# Plugins killed at every system call, at random, and in crowds, and daemons ended and killed under 10,000 packets a second
# (ARGS="--restarts 20" alone), for half an hour; ARGS="--seed N --cycles 1" does again what failed, and ARGS=--help tells the
# rest. After it, months of simulated days of nodes on a bad etcd, SIMULATION_FIRST_SEED=N
# SIMULATION_SEEDS=1 does one again. A sample of both is in make test.
SIMULATION_SEEDS ?= 500
soak: packages build
	@$(HARNESS) soak -- $(ARGS)
	SIMULATION_SEEDS=$(SIMULATION_SEEDS) cargo test --locked -p flanneld-rs --lib simulation

# Everything that reads bytes from outside, each target for a bounded time, with the nightly compiler. What is found goes to
# fuzz/artifacts; once mended, it stays as a test of the crate that read it.
FUZZ_SECONDS ?= 20
FUZZ := cargo +nightly fuzz

fuzz:
	@rustup toolchain list | grep -q '^nightly' || rustup toolchain install nightly --profile minimal
	@$(FUZZ) --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	@cd fuzz && $(FUZZ) build --fuzz-dir .
	@cd fuzz && for target in $$($(FUZZ) list --fuzz-dir .); do \
	  mkdir -p corpus/$$target; \
	  $(FUZZ) run --fuzz-dir . $$target corpus/$$target seeds/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=5 -rss_limit_mb=1024 -verbosity=0 || exit 1; \
	done

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet

# After a wanted change of what is printed: writes the golden files anew, to be read in the diff.
golden: packages build
	UPDATE_GOLDEN=1 cargo test --workspace --locked golden

install: build
	install -D $(DIST)/flanneld-rs $(DESTDIR)$(PREFIX)/bin/flanneld-rs
	$(DIST)/cni-plugin install --bin-dir $(abspath $(DESTDIR)$(CNI_BIN))
	install -D -m 644 conf/flanneld-rs.service $(DESTDIR)$(PREFIX)/lib/systemd/system/flanneld-rs.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/flanneld-rs README.md
	install -D -m 644 -t $(DESTDIR)/etc/systemd/network conf/network/10-flanneld-rs.network conf/network/10-flanneld-rs.link
	install -D -m 644 -t $(DESTDIR)/etc/NetworkManager/conf.d conf/network/10-flanneld-rs.conf

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# As Go, and Debian, call this processor.
ARCH    := $(or $(patsubst x86_64-%,amd64,$(filter x86_64-%,$(TARGET))),$(patsubst aarch64-%,arm64,$(filter aarch64-%,$(TARGET))))

# The container image of conf/kubernetes, for ctr image import, podman load, or a registry: $(DIST)/flanneld-rs.image.tar.
# More processors: build them as above, and name them in PLATFORMS="amd64=dist arm64=dist/arm64".
PLATFORMS ?= $(ARCH)=$(DIST)
image: build
	@$(HARNESS) image -- --output $(DIST)/flanneld-rs.image.tar $(PLATFORMS:%=--platform %)

# A Debian package for nodes without Kubernetes; the same executables give the same bytes.
deb: build deb-of-dist

STAGE           := $(DIST)/deb
DEB_COMPRESSION ?= xz
# The files' time: the last commit's.
SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),1767225600)
deb-of-dist:
	@rm -rf $(STAGE)
	@install -D $(DIST)/flanneld-rs $(STAGE)/usr/bin/flanneld-rs
	@install -D $(DIST)/cni-plugin $(STAGE)/usr/lib/flanneld-rs/cni-plugin
	@install -D -m 644 conf/debian/settings $(STAGE)/usr/lib/flanneld-rs/settings
	@install -D -m 644 conf/flanneld-rs.default $(STAGE)/etc/default/flanneld-rs
	@install -d $(STAGE)/usr/lib/systemd/system $(STAGE)/DEBIAN
	@sed 's|/usr/local|/usr|' conf/flanneld-rs.service >$(STAGE)/usr/lib/systemd/system/flanneld-rs.service
	@install -D -m 644 -t $(STAGE)/usr/lib/systemd/network conf/network/10-flanneld-rs.network conf/network/10-flanneld-rs.link
	@install -D -m 644 -t $(STAGE)/usr/lib/NetworkManager/conf.d conf/network/10-flanneld-rs.conf
	@install -D -m 644 -t $(STAGE)/usr/share/doc/flanneld-rs README.md CHANGELOG.md conf/debian/copyright
	@sed "s/@VERSION@/$(VERSION)/; s/@DATE@/$$(LC_ALL=C date -uRd @$(SOURCE_DATE_EPOCH))/" conf/debian/changelog | \
	  gzip -9n >$(STAGE)/usr/share/doc/flanneld-rs/changelog.gz
	@install -D -m 644 conf/debian/lintian-overrides $(STAGE)/usr/share/lintian/overrides/flanneld-rs
	@sed 's/@VERSION@/$(VERSION)/; s/@ARCHITECTURE@/$(ARCH)/' conf/debian/control >$(STAGE)/DEBIAN/control
	@install -m 644 conf/debian/conffiles $(STAGE)/DEBIAN
	@install -m 755 conf/debian/postinst conf/debian/prerm conf/debian/postrm $(STAGE)/DEBIAN
	@chmod -R u=rwX,go=rX $(STAGE)
	@SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) dpkg-deb --root-owner-group -Z$(DEB_COMPRESSION) --build $(STAGE) $(DIST)/flanneld-rs_$(VERSION)_$(ARCH).deb
	@rm -rf $(STAGE)

clean:
	cargo clean
	rm -rf $(DIST)
