# shellcheck shell=bash
# What the scripts need of the machine; sourced by quickstart and test.

# needs THING:PACKAGE... makes sure that every THING, a program or an absolute path, is there. As root on Debian and
# Ubuntu it installs the missing packages; otherwise it says which.
needs() {
    local pair thing missing=()
    for pair in "$@"; do
        thing=${pair%:*}
        case $thing in
            /*) [ -e "$thing" ] || missing+=("${pair##*:}") ;;
            *) command -v "$thing" >/dev/null || missing+=("${pair##*:}") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${missing[*]}"
        apt-get update -q >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "missing: ${missing[*]}" >&2
        echo "install them, on Debian and Ubuntu with: sudo apt-get install ${missing[*]}" >&2
        return 1
    fi
}

# needs_rust makes sure that there is a Rust toolchain new enough for Cargo.toml.
needs_rust() {
    local wanted found
    command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
        echo "missing: a Rust toolchain, $wanted or newer" >&2
        echo "get it with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
        return 1
    fi
    found=$(rustc --version | cut -d ' ' -f 2)
    if [ "$(printf '%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)" != "$wanted" ]; then
        echo "rustc is $found, hushfs needs $wanted or newer; distributions are often behind" >&2
        echo "get it with: rustup update   (rustup: https://rustup.rs)" >&2
        return 1
    fi
}

# needs_fuse makes sure that filesystems can be mounted.
needs_fuse() {
    if [ ! -e /dev/fuse ] && [ "$(id -u)" = 0 ]; then
        modprobe fuse 2>/dev/null || true
    fi
    if [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then
        echo "/dev/fuse is not there or may not be opened" >&2
        echo "load the module with: sudo modprobe fuse   (in a container: --device /dev/fuse --cap-add SYS_ADMIN)" >&2
        return 1
    fi
}
