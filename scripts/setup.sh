# Shared by ./test and ./demo: says what happens, and installs with apt what is missing, nothing else.

say() { printf '\n\033[1;34m== %s\033[0m\n' "$*"; }
fail() {
    printf '\n\033[1;31mfailed: %s\033[0m\n' "$*" >&2
    exit 1
}

# Tools that take long to build, and guests, are kept here, so that another clone does not make them again.
tfix_cache=${TFIX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tfix}

# Version managers put wrappers of python and others in front of the system's tools, and cmake trips over them: PATH is
# the directory of cargo, then the system.
system_path() {
    local cargo_dir=
    if command -v cargo >/dev/null; then
        cargo_dir=$(dirname "$(command -v cargo)"):
    elif [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        cargo_dir=${CARGO_HOME:-$HOME/.cargo}/bin:
    fi
    export PATH=${cargo_dir}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}
system_path

updated=
install() {
    local package=$1 for_what=$2 sudo=
    command -v apt-get >/dev/null || fail "$for_what is missing, and there is no apt-get to install $package with"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "$for_what is missing; install the package $package (no sudo here)"
        sudo=sudo
    fi
    say "installing $package, for $for_what"
    if [ -z "$updated" ]; then
        $sudo apt-get update -qq || fail "apt-get update, wanted for $package"
        updated=yes
    fi
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" ||
        fail "$for_what: apt-get could not install $package"
}

# Each argument is command:package.
need_commands() {
    local pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || install "${pair#*:}" "${pair%%:*}"
        command -v "${pair%%:*}" >/dev/null || fail "${pair%%:*} is missing though ${pair#*:} is installed"
    done
}

# Each argument is header:package.
need_file() {
    local pair
    for pair in "$@"; do
        echo "#include <${pair%%:*}>" | gcc -E -o /dev/null - 2>/dev/null || install "${pair#*:}" "${pair%%:*}"
        echo "#include <${pair%%:*}>" | gcc -E -o /dev/null - 2>/dev/null || fail "gcc does not find ${pair%%:*}"
    done
}

# A compiler of the version that Cargo.toml asks for: the one there is, else Debian's newest.
need_cargo() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if command -v cargo >/dev/null; then
        have=$(rustc --version | cut -d' ' -f2)
        if [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ]; then
            return
        fi
    fi
    install rustc-web "rustc $wanted or newer"
    install cargo-web "cargo $wanted or newer"
    export PATH=/usr/bin:$PATH
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
        fail "rustc $wanted or newer is needed, and apt-get brings $have"
}
