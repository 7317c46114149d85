# For systems that no package is made for:
#
#   make                           builds; needs Rust 1.95 or later and a C compiler
#   make install                   as root; PREFIX=/usr/local, and DESTDIR= for whoever packages it
#   make uninstall                 leaves settings, keys and data
#
# Settings are in /etc and data in /var/lib whatever PREFIX is: the programs look there.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
INSTALL ?= install

# What is installed, laid out by `make` or by `cargo xtask dist`.
STAGE ?= target/stage
CARGO_TARGET_DIR ?= target

BIN = $(DESTDIR)$(PREFIX)/bin
LIB = $(DESTDIR)$(PREFIX)/lib
SHARE = $(DESTDIR)$(PREFIX)/share
UNITS = faasd.service faasd-functions.service faasd-forwarding.service faasd.socket faasd.slice

.PHONY: all build install install-files uninstall

all: build
	rm -rf $(STAGE)
	mkdir -p $(STAGE)/bin $(STAGE)/completions
	cp $(CARGO_TARGET_DIR)/release/faasd $(CARGO_TARGET_DIR)/release/faas $(STAGE)/bin
	$(STAGE)/bin/faas man $(STAGE)/man/man1
	$(STAGE)/bin/faasd man $(STAGE)/man/man8
	gzip -n9 $(STAGE)/man/man1/* $(STAGE)/man/man8/*
	$(STAGE)/bin/faas completions bash > $(STAGE)/completions/faas.bash
	$(STAGE)/bin/faas completions zsh > $(STAGE)/completions/_faas
	$(STAGE)/bin/faas completions fish > $(STAGE)/completions/faas.fish

build:
	CARGO_TARGET_DIR=$(CARGO_TARGET_DIR) $(CARGO) build --release --locked -p faasd --bins

$(STAGE)/bin/faasd:
	@echo "nothing is built yet: run make first" >&2; exit 1

install: $(STAGE)/bin/faasd install-files
	@echo
	@echo "Installed in $(DESTDIR)$(PREFIX). It needs runc 1.1 or later. What comes next, as root:"
	@echo "  groupadd --system faas         # members may use faas without sudo"
	@echo "  systemctl daemon-reload && systemctl enable --now faasd.socket faasd.service"
	@echo "  faas doctor"

install-files:
	$(INSTALL) -d $(BIN) $(LIB)/systemd/system $(LIB)/sysusers.d $(DESTDIR)/etc/faasd
	$(INSTALL) -d $(SHARE)/man/man1 $(SHARE)/man/man8 $(SHARE)/bash-completion/completions
	$(INSTALL) -d $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	$(INSTALL) -m 755 $(STAGE)/bin/faasd $(STAGE)/bin/faas $(BIN)
	for unit in $(UNITS); do \
		sed 's|/usr/bin/faas|$(PREFIX)/bin/faas|g' packaging/systemd/$$unit > $(LIB)/systemd/system/$$unit && \
		chmod 644 $(LIB)/systemd/system/$$unit || exit 1; \
	done
	$(INSTALL) -m 644 packaging/systemd/faasd-sysusers.conf $(LIB)/sysusers.d/faasd.conf
	test -e $(DESTDIR)/etc/faasd/faasd.toml || $(INSTALL) -m 644 packaging/faasd.toml $(DESTDIR)/etc/faasd/faasd.toml
	$(INSTALL) -m 644 $(STAGE)/man/man1/* $(SHARE)/man/man1
	$(INSTALL) -m 644 $(STAGE)/man/man8/* $(SHARE)/man/man8
	$(INSTALL) -m 644 $(STAGE)/completions/faas.bash $(SHARE)/bash-completion/completions/faas
	$(INSTALL) -m 644 $(STAGE)/completions/_faas $(SHARE)/zsh/site-functions/_faas
	$(INSTALL) -m 644 $(STAGE)/completions/faas.fish $(SHARE)/fish/vendor_completions.d/faas.fish

uninstall:
	rm -f $(BIN)/faasd $(BIN)/faas
	cd $(LIB)/systemd/system && rm -f $(UNITS)
	rm -f $(LIB)/sysusers.d/faasd.conf
	rm -f $(SHARE)/man/man1/faas.1.gz $(SHARE)/man/man1/faas-*.1.gz
	rm -f $(SHARE)/man/man8/faasd.8.gz $(SHARE)/man/man8/faasd-*.8.gz
	rm -f $(SHARE)/bash-completion/completions/faas $(SHARE)/zsh/site-functions/_faas
	rm -f $(SHARE)/fish/vendor_completions.d/faas.fish
