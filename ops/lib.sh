# Shared by the commands in ops/: installs what is missing, with its reasons.
# Sourced, not run.

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need_root() {
  [ "$(id -u)" -eq 0 ] || die "$1 needs root: $2 (try: sudo $0)"
}

# debian COMMAND=PACKAGE ...: installs the packages whose command is missing.
debian() {
  local missing=() pair
  for pair; do
    command -v "${pair%%=*}" >/dev/null 2>&1 || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || die "missing: ${missing[*]} (no apt-get here; install them by hand)"
  say "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# What reports name as the commit they were built from.
commit() {
  git describe --always --dirty --exclude '*' --abbrev=12 2>/dev/null || echo unknown
}

toolchain() {
  command -v cargo >/dev/null || die "no Rust toolchain: install rustup, then run this again"
  # protoc: the gRPC code; nft, ip: the network; busybox, curl: the example.
  debian cc=gcc protoc=protobuf-compiler nft=nftables ip=iproute2 busybox=busybox-static curl=curl jq=jq
}
