#!/usr/bin/env bash
# Guests for the tests on other architectures: Linux systems under qemu, booted once and kept as a saved state, from which
# they start in less than a second; and tfix built for them.
#
# Sourced by ./test. By itself:
#   scripts/guests.sh prepare [NAME...]   makes what is missing
#   scripts/guests.sh tfix [NAME...]      builds tfix for guests
#
# What was made is kept in the cache that scripts/setup.sh names; delete a guest's directory there to make it anew.
# A guest's directory has: kernel, initrd, state, and `command`, the arguments to start it with, one in each line, in which
# @GUEST@ and @SOCKETS@ stand for the guest's directory and one of one's own.

guests_repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
guests_files=$guests_repository/scripts/guests
[ -n "${tfix_cache:-}" ] || source "$guests_repository/scripts/setup.sh"
guests_cache=$tfix_cache/guests
# What is built from this clone.
guests_built=${CARGO_TARGET_DIR:-$guests_repository/target}/guests

# All guests, and for each: qemu, its machine, the compilers' prefix, their packages, Debian's name of the architecture
# (empty: Debian has none), the target that rustc knows, the kernel.
guest_names=(mipsel mips mips64el aarch64 aarch64_max)
guest_fields() {
    guest_qemu_package=qemu-system-mips
    case $1 in
    mipsel)
        guest_qemu=qemu-system-mipsel guest_machine="-M malta -cpu 24Kf -m 256" guest_console=ttyS0
        guest_triple=mipsel-linux-gnu guest_toolchain="gcc-mipsel-linux-gnu libc6-dev-mipsel-cross"
        guest_debian=mipsel guest_kernel=linux-image-4kc-malta guest_rust=mipsel-unknown-linux-gnu
        # python3.11-minimal is a program of somebody else that uses a library of somebody else, zlib.
        guest_packages="libc6 libgcc-s1 libstdc++6 gdbserver zlib1g libexpat1 python3.11-minimal libpython3.11-minimal"
        ;;
    mips)
        guest_qemu=qemu-system-mips guest_machine="-M malta -cpu 24Kf -m 256" guest_console=ttyS0
        guest_triple=mips-linux-gnu guest_toolchain="gcc-mips-linux-gnu libc6-dev-mips-cross g++-mips-linux-gnu"
        guest_debian="" guest_kernel=malta-be.config guest_rust=mips-unknown-linux-gnu
        guest_packages=""
        ;;
    mips64el)
        guest_qemu=qemu-system-mips64el guest_machine="-M malta -cpu MIPS64R2-generic -m 256" guest_console=ttyS0
        guest_triple=mips64el-linux-gnuabi64 guest_toolchain="gcc-mips64el-linux-gnuabi64 libc6-dev-mips64el-cross"
        guest_debian=mips64el guest_kernel=linux-image-5kc-malta guest_rust=mips64el-unknown-linux-gnuabi64
        guest_packages="libc6 libgcc-s1 libstdc++6 gdbserver"
        ;;
    # The same system on two processors: a small one, and one with all that there is (signed return addresses, guarded pages,
    # long vectors). The signature is qemu's own: to compute the architecture's takes half of the time.
    aarch64 | aarch64_max)
        guest_qemu=qemu-system-aarch64 guest_qemu_package=qemu-system-arm guest_console=ttyAMA0
        case $1 in
        aarch64) guest_machine="-M virt -cpu cortex-a57 -m 256" ;;
        *) guest_machine="-M virt -cpu max,pauth-impdef=on -m 256" ;;
        esac
        guest_triple=aarch64-linux-gnu guest_toolchain="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
        guest_debian=arm64 guest_kernel=linux-image-cloud-arm64 guest_rust=aarch64-unknown-linux-gnu
        guest_packages="libc6 libgcc-s1 libstdc++6 gdbserver zlib1g libexpat1 python3.11-minimal libpython3.11-minimal"
        ;;
    *) fail "there is no guest called $1" ;;
    esac
}

# Drivers of the control channel, in an order in which they can be loaded everywhere; kernels of our own have them built in.
guest_modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_console"

# apt-get with a state of its own for a foreign architecture: the system's list of architectures stays as it is.
guest_apt() {
    local arch=$1 dir=$guests_cache/apt/$1 command=$2
    shift 2
    mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
    : >"$dir/status"
    "$command" -qq -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o Dir::State="$dir/state" \
        -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" -o Acquire::Languages=none \
        -o APT::Sandbox::User= "$@"
}

# Unpacks packages of a foreign architecture into a directory; nothing is installed.
guest_unpack() {
    local arch=$1 into=$2 package deb
    shift 2
    mkdir -p "$guests_cache/debs/$arch" "$into"
    for package in "$@"; do
        deb=$(find "$guests_cache/debs/$arch" -name "${package}_*.deb" | head -n 1)
        if [ -z "$deb" ]; then
            (cd "$guests_cache/debs/$arch" && guest_apt "$arch" apt-get download "$package") ||
                fail "the package $package:$arch can't be downloaded"
            deb=$(find "$guests_cache/debs/$arch" -name "${package}_*.deb" | head -n 1)
        fi
        dpkg -x "$deb" "$into" || fail "$deb can't be unpacked"
    done
}

# Debian's kernel and its modules, for a guest whose fields are set.
guest_debian_kernel() {
    local dir=$1 root=$2 image release module path
    image=$(guest_apt "$guest_debian" apt-cache depends "$guest_kernel" | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -n 1)
    [ -n "$image" ] || fail "the package $guest_kernel:$guest_debian is not in apt's lists"
    say "guest $(basename "$dir"): kernel $image"
    guest_unpack "$guest_debian" "$dir/kernel.d" "$image"
    cp "$dir"/kernel.d/boot/vmlinu* "$dir/kernel"
    release=$(ls "$dir/kernel.d/lib/modules")
    mkdir -p "$root/modules"
    for module in $guest_modules; do
        path=$(find "$dir/kernel.d/lib/modules/$release" -name "$module.ko*" | head -n 1)
        [ -n "$path" ] || continue
        case $path in
        *.xz) xz -dc "$path" >"$root/modules/$module.ko" ;;
        *) cp "$path" "$root/modules/$module.ko" ;;
        esac
        echo "/modules/$module.ko" >>"$root/modules/list"
    done
    rm -rf "$dir/kernel.d"
}

# A kernel from Debian's source package, for an architecture that Debian has no kernel for.
guest_own_kernel() {
    local dir=$1 source tree key kept
    [ -n "$(ls /usr/src/linux-source-*.tar.xz 2>/dev/null)" ] || install linux-source "the kernel's source"
    source=$(find /usr/src -name 'linux-source-*.tar.xz' | sort -V | tail -n 1)
    [ -n "$source" ] || fail "there is no /usr/src/linux-source-*.tar.xz though linux-source is installed"
    # The kernel takes the longest by far: it stays while its own ingredients stay.
    key=$({ echo "$source" && stat -c %s "$source" && cat "$guests_files/$guest_kernel" && "$guest_triple-gcc" --version; } | sha256sum)
    kept=$guests_cache/kernels/${key%% *}
    if [ -e "$kept" ]; then
        cp "$kept" "$dir/kernel"
        return
    fi
    need_commands make:make gcc:gcc bc:bc bison:bison flex:flex xz:xz-utils cpio:cpio
    say "guest $(basename "$dir"): building a kernel from $(basename "$source") (a minute or two)"
    tree=$guests_cache/linux
    rm -rf "$tree"
    mkdir -p "$tree"
    tar -C "$tree" --strip-components=1 -xJf "$source" || fail "$source can't be unpacked"
    local make=(make -s -C "$tree" ARCH=mips CROSS_COMPILE="$guest_triple-")
    "${make[@]}" tinyconfig >"$dir/kernel.log" 2>&1 &&
        (cd "$tree" && ARCH=mips scripts/kconfig/merge_config.sh -m .config "$guests_files/$guest_kernel") >>"$dir/kernel.log" 2>&1 &&
        "${make[@]}" olddefconfig >>"$dir/kernel.log" 2>&1 &&
        nice "${make[@]}" -j"$(nproc)" vmlinux >>"$dir/kernel.log" 2>&1 ||
        { tail -n 30 "$dir/kernel.log" >&2; fail "the kernel of guest $(basename "$dir") does not build"; }
    "$guest_triple-strip" -o "$dir/kernel" "$tree/vmlinux"
    mkdir -p "$guests_cache/kernels"
    cp "$dir/kernel" "$kept"
    rm -rf "$tree"
}

# gdbserver from Debian's source package, for an architecture that Debian has none for.
guest_own_gdbserver() {
    local dir=$1 source=/usr/src/gdb.tar.xz key kept tree build
    [ -e "$source" ] || install gdb-source "gdbserver's source"
    [ -e "$source" ] || fail "there is no $source though gdb-source is installed"
    # This takes minutes, too.
    key=$({ stat -c %s "$source" && "$guest_triple-g++" --version && declare -f guest_own_gdbserver; } | sha256sum)
    kept=$guests_cache/gdbservers/${key%% *}
    if [ ! -e "$kept" ]; then
        need_commands make:make g++:g++ xz:xz-utils
        say "guest $(basename "$dir"): building gdbserver from $(basename "$source") (two minutes or three)"
        tree=$guests_cache/gdb build=$guests_cache/gdb/build
        rm -rf "$tree"
        mkdir -p "$build" "$guests_cache/gdbservers"
        tar -C "$tree" --strip-components=1 --exclude='*/gdb/testsuite' --exclude='*/sim' -xJf "$source" ||
            fail "$source can't be unpacked"
        (cd "$build" && ../configure --host="$guest_triple" --disable-gdb --enable-gdbserver --disable-inprocess-agent \
            --disable-nls CFLAGS=-O1 CXXFLAGS=-O1 LDFLAGS=-static) >"$dir/gdbserver.log" 2>&1 &&
            nice make -C "$build" -j"$(nproc)" all-gdbserver >>"$dir/gdbserver.log" 2>&1 ||
            { tail -n 30 "$dir/gdbserver.log" >&2; fail "gdbserver does not build for $guest_triple"; }
        "$guest_triple-strip" -o "$kept.part" "$build/gdbserver/gdbserver" && mv "$kept.part" "$kept"
        rm -rf "$tree"
    fi
    mkdir -p "$dir/root/usr/bin"
    cp "$kept" "$dir/root/usr/bin/gdbserver"
}

# What the guest's programs need: the C library and a few programs.
guest_libraries() {
    local root=$1 lib
    if [ -n "$guest_packages" ]; then
        # shellcheck disable=SC2086
        guest_unpack "$guest_debian" "$root" $guest_packages
        # Of python, what `python3.11 -S -E -c` wants; of all, nothing that is only read.
        find "$root/usr/lib" -name gconv -prune -exec rm -rf {} + 2>/dev/null || true
        if [ -d "$root/usr/lib/python3.11" ]; then
            find "$root/usr/lib/python3.11" -mindepth 1 -maxdepth 1 ! -name encodings -exec rm -rf {} +
            find "$root/usr/lib/python3.11/encodings" -type f ! -name __init__.py ! -name aliases.py ! -name 'utf_8.py' \
                ! -name latin_1.py ! -name ascii.py -delete
        fi
        rm -rf "$root/usr/share" "$root/usr/lib/audit" "$root/etc" "$root"/usr/lib/*/audit
    else
        mkdir -p "$root/lib"
        for lib in ld.so.1 libc.so.6 libm.so.6 libgcc_s.so.1; do
            cp -L "/usr/$guest_triple/lib/$lib" "$root/lib/"
        done
    fi
}

# Waits until a file has a line, or a process has ended.
guest_await() {
    local file=$1 line=$2 pid=$3 tenths=0
    until grep -q "$line" "$file" 2>/dev/null; do
        kill -0 "$pid" 2>/dev/null || return 1
        tenths=$((tenths + 1))
        [ "$tenths" -lt 3000 ] || return 1
        sleep 0.1
    done
}

# Boots the guest and saves it in the moment in which its agent waits for somebody. It is saved while it runs, so that it runs
# when it is restored.
guest_save() {
    local dir=$1 name pid
    name=$(basename "$dir")
    say "guest $name: booting it once, to save its state"
    local sockets=$dir/boot arguments=() line
    rm -rf "$sockets"
    mkdir -p "$sockets"
    while IFS= read -r line; do
        line=${line//@SOCKETS@/$sockets}
        line=${line//@GUEST@/$dir}
        arguments+=("$line")
    done < <(sed '/^-incoming$/,$d' "$dir/command")
    mkfifo "$sockets/to-monitor"
    "${arguments[@]}" -monitor stdio <"$sockets/to-monitor" >"$dir/monitor.log" 2>&1 &
    pid=$!
    exec 9>"$sockets/to-monitor"
    if ! guest_await "$sockets/console" "agent: ready" "$pid"; then
        kill "$pid" 2>/dev/null || true
        grep -av "\[K" "$dir/monitor.log" >&2 || true
        cat "$sockets/console" >&2 || true
        fail "guest $name does not boot"
    fi
    rm -f "$dir/state"
    printf 'migrate_set_parameter max-bandwidth 10G\nmigrate "exec:cat > %s.part && mv %s.part %s"\nquit\n' \
        "$dir/state" "$dir/state" "$dir/state" >&9
    exec 9>&-
    wait "$pid" || true
    [ -s "$dir/state" ] || { grep -av "\[K" "$dir/monitor.log" >&2; fail "the state of guest $name could not be saved"; }
    rm -rf "$sockets"
}

# What a guest is made from: if that changes it is made anew. Of the table, its own row counts.
guest_key() {
    {
        printf '%s\n' "$guest_machine" "$guest_console" "$guest_debian" "$guest_kernel" "$guest_packages" "$guest_modules"
        declare -f guest_debian_kernel guest_own_kernel guest_own_gdbserver guest_libraries guest_save prepare_guest
        cat "$guests_files"/*
        "$guest_qemu" --version
        "$guest_triple-gcc" --version
    } | sha256sum
}

guest_tools() {
    # shellcheck disable=SC2086
    set -- $guest_toolchain
    need_commands "$guest_triple-gcc:$1" "$guest_qemu:$guest_qemu_package" cpio:cpio dpkg:dpkg flock:util-linux
    [ -e "/usr/$guest_triple/include/stdio.h" ] || install "$2" "the C library for $guest_triple"
    [ -z "${3:-}" ] || need_commands "$guest_triple-g++:$3"
    [ -e "/usr/$guest_triple/include/stdio.h" ] || fail "/usr/$guest_triple/include/stdio.h is missing though $2 is installed"
}

prepare_guest() {
    local name=$1 dir=$guests_cache/$1 root key
    guest_fields "$name"
    guest_tools
    key=$(guest_key)
    mkdir -p "$dir"
    # Tests may ask for the same guest at the same time.
    exec 8>"$dir/lock"
    flock 8
    if [ "$(cat "$dir/key" 2>/dev/null)" != "$key" ]; then
        rm -rf "$dir/key" "$dir/root" "$dir/kernel"
        root=$dir/root
        mkdir -p "$root"
        if [ -n "$guest_debian" ]; then
            say "guest $name: Debian's packages for $guest_debian"
            guest_apt "$guest_debian" apt-get update || fail "apt-get update for $guest_debian"
            guest_debian_kernel "$dir" "$root"
        else
            guest_own_kernel "$dir"
            guest_own_gdbserver "$dir"
        fi
        guest_libraries "$root"
        "$guest_triple-gcc" -Wall -Wextra -O2 -static -D_FILE_OFFSET_BITS=64 -o "$root/init" "$guests_files/agent.c" ||
            fail "the agent of guest $name does not compile"
        (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$dir/initrd"
        # The serial bus: port 1 is the agent's, the others are for debug stubs.
        {
            printf '%s\n' "$guest_qemu"
            # shellcheck disable=SC2086
            printf '%s\n' $guest_machine
            printf '%s\n' -kernel @GUEST@/kernel -initrd @GUEST@/initrd -append "console=$guest_console quiet panic=-1"
            printf '%s\n' -display none -vga none -no-reboot -nic none -serial file:@SOCKETS@/console -device virtio-serial-pci
            local port
            for port in 1 2 3 4; do
                printf '%s\n' -chardev "socket,id=port$port,path=@SOCKETS@/port$port,server=on,wait=off" \
                    -device "virtserialport,chardev=port$port,nr=$port"
            done
            printf '%s\n' -incoming "exec:cat @GUEST@/state"
        } >"$dir/command"
        guest_save "$dir"
        printf '%s\n' "$key" >"$dir/key"
    fi
    exec 8>&-
}

prepare_guests() {
    local name
    for name in "${@:-${guest_names[@]}}"; do
        prepare_guest "$name"
    done
}

# Builds tfix for a guest, fully static; cargo sees what is left to do. rustup has no compiled standard library for these
# targets: Debian's compiler builds one from its own source package.
cross_tfix() {
    local name=$1 variable
    guest_fields "$name"
    guest_tools
    [ -x /usr/bin/rustc ] || install rustc-web "a compiler that comes with its library's source"
    [ -x /usr/bin/cargo ] || install cargo-web "cargo of the same version"
    [ -e "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/std" ] ||
        install rust-web-src "the source of Rust's standard library"
    variable=${guest_rust//-/_}
    mkdir -p "$guests_built"
    env PATH=/usr/bin:/bin RUSTC_BOOTSTRAP=1 RUSTFLAGS='-C target-feature=+crt-static' \
        "CARGO_TARGET_${variable^^}_LINKER=$guest_triple-gcc" "CC_$variable=$guest_triple-gcc" \
        nice cargo build --quiet --locked --manifest-path "$guests_repository/Cargo.toml" -p tfix --profile guest \
        -Zbuild-std=std,panic_abort --target "$guest_rust" --target-dir "$guests_built/cargo" ||
        fail "tfix does not build for $guest_rust"
    cp "$guests_built/cargo/$guest_rust/guest/tfix" "$guests_built/tfix-$name"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    cd "$guests_repository"
    verb=${1:-}
    [ $# -eq 0 ] || shift
    [ $# -gt 0 ] || set -- "${guest_names[@]}"
    case $verb in
    prepare) prepare_guests "$@" ;;
    tfix) for name in "$@"; do cross_tfix "$name"; done ;;
    *) fail "usage: scripts/guests.sh prepare|tfix [NAME...]" ;;
    esac
fi
