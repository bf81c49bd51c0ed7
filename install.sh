#!/bin/sh
# Installs Dormouse as a service of systemd or OpenRC; `sh install.sh --help` says how.
# Everything is in functions and the only call is on the last line, in braces: a download cut short runs nothing.
set -euf
export LC_ALL=C

VARIABLES='BINARY BIN_DIR BIN_DIR_READ_ONLY EXEC FORCE_RESTART NAME ROOT SKIP_DOWNLOAD SKIP_ENABLE SKIP_START SYMLINK SYSTEMD_DIR TYPE URL VERSION'
NEWLINE='
'

usage() {
    cat <<'END'
usage: [VARIABLE=value ...] sh install.sh [--dry-run] [server] [flags of dormouse server ...]

Each variable's name begins with INSTALL_DORMOUSE_:
  SKIP_DOWNLOAD=true       install from this machine: the file named by BINARY, else BIN_DIR/dormouse
  BINARY=path              the dormouse binary to install
  URL=https://...          where to download from: URL[/VERSION]/dormouse-ARCH and sha256sum-ARCH.txt
  VERSION=v1.2.3+dormouse1 which release under URL
  BIN_DIR=dir              binary, symlinks and scripts go there (/usr/local/bin)
  BIN_DIR_READ_ONLY=true   write nothing to BIN_DIR; the binary is there already
  SYSTEMD_DIR=dir          unit and its environment file go there (/etc/systemd/system)
  EXEC='server --flag'     the command to run, before the arguments of this script
  NAME=name                call the service dormouse-name
  TYPE=notify|exec|simple  the type of the systemd service (notify)
  SYMLINK=skip|force       no symlinks, or symlinks even if the name is taken (only if it is free)
  SKIP_ENABLE=true         neither enable nor start the service
  SKIP_START=true          do not start the service
  FORCE_RESTART=true       restart the service even if nothing changed
  ROOT=dir                 install into the system mounted there; SKIP_START is then true unless said otherwise

DORMOUSE_*, CONTAINERD_* and proxy variables are handed to the service through a file only root can read.
--dry-run lists what would be written and run, and does neither.
END
}

info() {
    echo "[INFO]  $*"
}

warn() {
    echo "[WARN]  $*" >&2
}

fatal() {
    echo "[ERROR] $*" >&2
    exit 1
}

# variable NAME [DEFAULT]: the value of INSTALL_DORMOUSE_NAME.
variable() {
    eval "printf '%s' \"\${INSTALL_DORMOUSE_$1:-\${2:-}}\""
}

# boolean NAME [DEFAULT]: the same for what can only be true or false.
boolean() {
    value=$(variable "$1" "${2:-false}")
    case $value in
        true | false) echo "$value" ;;
        *) fatal "INSTALL_DORMOUSE_$1: \"$value\" is neither true nor false" ;;
    esac
}

# directory NAME DEFAULT: the same for an absolute path that is safe to write into a unit and a script.
directory() {
    value=$(variable "$1" "$2")
    case $value in
        *[!A-Za-z0-9/_.+-]* | [!/]* | */../* | */..)
            fatal "INSTALL_DORMOUSE_$1: \"$value\" is not an absolute path of letters, digits and /_.+-" ;;
        /) fatal "INSTALL_DORMOUSE_$1: the root directory itself cannot be used" ;;
    esac
    printf '%s' "${value%/}"
}

# exported PATTERN...: the names, each matching one of the basic regular expressions, of exported variables, sorted.
exported() {
    for pattern do
        shift
        set -- "$@" -e "s/^\\($pattern\\)=.*/\\1/p"
    done
    env | sed -n "$@" | sort -u | while IFS= read -r name; do
        # A line inside the value of another variable can look like one.
        if eval "[ -n \"\${$name+set}\" ]"; then echo "$name"; fi
    done
}

read_variables() {
    for name in $(exported 'INSTALL_DORMOUSE_[A-Za-z0-9_]*'); do
        case " $VARIABLES " in
            *" ${name#INSTALL_DORMOUSE_} "*) ;;
            *) fatal "$name is not known; after INSTALL_DORMOUSE_ come: $VARIABLES" ;;
        esac
    done

    ROOT=$(variable ROOT)
    if [ -n "$ROOT" ]; then
        [ -d "$ROOT" ] || fatal "INSTALL_DORMOUSE_ROOT: \"$ROOT\" is not a directory"
        ROOT=$(cd -P "$ROOT" && pwd -P)
        ROOT=${ROOT%/}
    fi
    if [ -z "$ROOT" ] && [ "$DRY_RUN" = false ] && [ "$(id -u)" -ne 0 ]; then
        fatal 'installing needs root: run this as root, or with sudo'
    fi

    SKIP_ENABLE=$(boolean SKIP_ENABLE)
    SKIP_START=$(boolean SKIP_START "${ROOT:+true}")
    FORCE_RESTART=$(boolean FORCE_RESTART)
    SKIP_DOWNLOAD=$(boolean SKIP_DOWNLOAD)
    READ_ONLY=$(boolean BIN_DIR_READ_ONLY)
    if [ "$READ_ONLY" = true ]; then SKIP_DOWNLOAD=true; fi
    SYMLINK=$(variable SYMLINK)
    case $SYMLINK in
        '' | skip | force) ;;
        *) fatal "INSTALL_DORMOUSE_SYMLINK: \"$SYMLINK\" is neither skip nor force" ;;
    esac
    TYPE=$(variable TYPE notify)
    case $TYPE in
        notify | exec | simple) ;;
        *) fatal "INSTALL_DORMOUSE_TYPE: \"$TYPE\" is none of notify, exec, simple" ;;
    esac
    SERVICE=$(variable NAME)
    case $SERVICE in
        *[!A-Za-z0-9_.-]*) fatal "INSTALL_DORMOUSE_NAME: \"$SERVICE\" has other characters than letters, digits and _.-" ;;
    esac
    SERVICE=dormouse${SERVICE:+-$SERVICE}

    default=/usr/local/bin
    if [ ! -w "$ROOT$default" ] && [ -w "$ROOT/opt/bin" ]; then default=/opt/bin; fi
    BIN_DIR=$(directory BIN_DIR "$default")
    SYSTEMD_DIR=$(directory SYSTEMD_DIR /etc/systemd/system)

    if [ -n "${DORMOUSE_URL:-}" ]; then
        fatal 'DORMOUSE_URL: joining another server as an agent is not in this release; unset it to install a server'
    fi
}

# program NAME: the path of a program of the system that is installed into.
program() {
    if [ -z "$ROOT" ]; then
        command -v "$1"
        return
    fi
    for dir in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
        if [ -x "$ROOT$dir/$1" ]; then
            echo "$dir/$1"
            return
        fi
    done
    return 1
}

detect_init() {
    if [ -d "$ROOT/run/systemd/system" ]; then
        INIT=systemd
    elif [ -x "$ROOT/sbin/openrc-run" ]; then
        INIT=openrc
    elif command -v systemctl >/dev/null; then
        INIT=systemd
    else
        fatal 'neither systemd nor OpenRC is here to run the service'
    fi
    case $INIT in
        systemd)
            SERVICE_FILE=$SYSTEMD_DIR/$SERVICE.service
            ENV_FILE=$SYSTEMD_DIR/$SERVICE.service.env
            ;;
        openrc)
            SERVICE_FILE=/etc/init.d/$SERVICE
            ENV_FILE=/etc/dormouse/$SERVICE.env
            ;;
    esac
}

# read_command ARGUMENT...: writes the flags of `dormouse server`, one a line, to $WORK/flags and finds the data directory.
read_command() {
    {
        exec=$(variable EXEC)
        case $exec in
            # xargs knows quotes and backslashes and, unlike eval, runs nothing.
            *[![:space:]]*)
                printf '%s\n' "$exec" | xargs -n 1 printf '%s\n' 2>/dev/null ||
                    fatal 'INSTALL_DORMOUSE_EXEC: a quote is not closed'
                ;;
        esac
        for argument do
            case $argument in
                *"$NEWLINE"*) fatal 'an argument has a line break in it' ;;
            esac
            printf '%s\n' "$argument"
        done
    } >"$WORK/command"

    command=server
    case $(head -n 1 "$WORK/command") in
        -* | '') cp "$WORK/command" "$WORK/flags" ;;
        *)
            command=$(head -n 1 "$WORK/command")
            sed 1d "$WORK/command" >"$WORK/flags"
            ;;
    esac
    case $command in
        server) ;;
        agent) fatal 'agent: joining another server is not in this release; only "server" can be installed' ;;
        *) fatal "\"$command\" cannot be installed as a service; only \"server\" can" ;;
    esac

    DATA_DIR=${DORMOUSE_DATA_DIR:-}
    previous=
    while IFS= read -r flag; do
        case $previous in
            --data-dir | -d) DATA_DIR=$flag ;;
        esac
        case $flag in
            --data-dir=*) DATA_DIR=${flag#*=} ;;
        esac
        previous=$flag
    done <"$WORK/flags"
    case $DATA_DIR in
        '') ;;
        *[!A-Za-z0-9/_.+-]* | [!/]* | */../* | */.. | /)
            fatal "data directory: \"$DATA_DIR\" is not an absolute path of letters, digits and /_.+-" ;;
    esac
    DATA_DIR=${DATA_DIR%/}
}

# checksum FILE: its SHA-256.
checksum() {
    sum=$(sha256sum "$1") || fatal "cannot read $1"
    echo "${sum%% *}"
}

# download URL FILE
download() {
    if command -v curl >/dev/null; then
        curl --proto '=https' --proto-redir '=https' --fail --silent --show-error --location --output "$2" "$1"
    elif command -v wget >/dev/null; then
        wget -q -O "$2" "$1"
    else
        fatal 'downloading needs curl or wget'
    fi || fatal "cannot download $1"
}

# find_binary: sets BINARY, the file to install, and BINARY_SUM. BINARY is the installed file itself if that stays.
find_binary() {
    installed=$ROOT$BIN_DIR/dormouse
    BINARY=$(variable BINARY)
    url=$(variable URL)
    if [ -n "$BINARY" ]; then
        [ -f "$BINARY" ] || fatal "INSTALL_DORMOUSE_BINARY: there is no file $BINARY"
        [ -x "$BINARY" ] || fatal "INSTALL_DORMOUSE_BINARY: $BINARY is not executable"
        [ "$READ_ONLY" = false ] || fatal 'INSTALL_DORMOUSE_BINARY and INSTALL_DORMOUSE_BIN_DIR_READ_ONLY exclude each other'
    elif [ "$SKIP_DOWNLOAD" = true ]; then
        [ -x "$installed" ] || fatal "no executable $installed: put it there, or name one with INSTALL_DORMOUSE_BINARY=path"
        BINARY=$installed
    elif [ -n "$url" ]; then
        fetch_binary "$url"
    else
        fatal 'no binary to install: name one with INSTALL_DORMOUSE_BINARY=path, or a place to download from with INSTALL_DORMOUSE_URL=https://...'
    fi
    if [ -f "$BINARY" ]; then
        version=$("$BINARY" --version 2>/dev/null </dev/null) || fatal "$BINARY does not run on this machine ($(uname -m))"
        info "Installing $(printf '%s\n' "$version" | head -n 1)"
        BINARY_SUM=$(checksum "$BINARY")
    fi
}

# fetch_binary URL: downloads beside the place it is meant for; /tmp may be small, or not allowed to execute.
fetch_binary() {
    case $1 in
        https://*) ;;
        *) fatal "INSTALL_DORMOUSE_URL: \"$1\" does not begin with https://" ;;
    esac
    case $(uname -m) in
        x86_64 | amd64) arch=amd64 ;;
        aarch64 | arm64) arch=arm64 ;;
        *) fatal "there is no release for $(uname -m); only for amd64 and arm64" ;;
    esac
    release=$(variable VERSION | sed 's/+/%2B/g')
    base=${1%/}${release:+/$release}
    BINARY=$ROOT$BIN_DIR/.dormouse.new
    BINARY_SUM=unknown
    if [ "$DRY_RUN" = true ]; then
        info "would download $base/dormouse-$arch"
        return
    fi

    info "Downloading $base/dormouse-$arch"
    download "$base/sha256sum-$arch.txt" "$WORK/sums"
    expected=$(sed -n "s/^\\([0-9a-f]\\{64\\}\\) [ *]dormouse-$arch\$/\\1/p" "$WORK/sums")
    [ -n "$expected" ] || fatal "$base/sha256sum-$arch.txt has no line for dormouse-$arch"
    if [ -x "$installed" ] && [ "$(checksum "$installed")" = "$expected" ]; then
        BINARY=$installed
        return
    fi
    mkdir -p "$ROOT$BIN_DIR"
    download "$base/dormouse-$arch" "$BINARY"
    [ "$(checksum "$BINARY")" = "$expected" ] || fatal "$base/dormouse-$arch does not have the SHA-256 that sha256sum-$arch.txt gives it"
    chmod 0755 "$BINARY"
}

# put FILE PATH MODE: writes PATH unless it has that content already, at once or not at all, even if the power fails.
# Succeeds if it changed.
put() {
    target=$ROOT$2
    if [ -f "$target" ] && cmp -s "$1" "$target"; then
        [ "$DRY_RUN" = true ] || chmod "$3" "$target"
        return 1
    fi
    if [ "$DRY_RUN" = true ]; then
        info "would write $target"
        return
    fi
    info "Writing $target"
    new=${target%/*}/.${target##*/}.new
    if ! {
        mkdir -p "${target%/*}" &&
            { [ "$1" = "$new" ] || cp "$1" "$new"; } &&
            chmod "$3" "$new" && sync "$new" && mv -f "$new" "$target"
    }; then
        rm -f "$new"
        fatal "cannot write $target"
    fi
}

install_binary() {
    if [ "$BINARY" = "$installed" ]; then return; fi
    if put "$BINARY" "$BIN_DIR/dormouse" 0755; then CHANGED=true; fi
    if [ "$DRY_RUN" = false ]; then BINARY=$installed; fi
}

install_symlinks() {
    if [ "$SYMLINK" = skip ]; then return; fi
    for name in kubectl crictl ctr; do
        link=$BIN_DIR/$name
        if [ "$(readlink "$ROOT$link" || true)" = dormouse ]; then continue; fi
        if [ "$SYMLINK" != force ]; then
            taken=$link
            if [ -e "$ROOT$link" ] || [ -L "$ROOT$link" ] || taken=$(program "$name"); then
                info "No symlink $ROOT$link: there is $taken already"
                continue
            fi
        fi
        # Only what this binary can do: one that does not know the verb fails.
        if [ -x "$BINARY" ] && ! "$BINARY" "$name" --help >/dev/null 2>&1 </dev/null; then continue; fi
        if [ "$DRY_RUN" = true ]; then
            info "would link $ROOT$link to dormouse"
        else
            info "Linking $ROOT$link to dormouse"
            ln -sf dormouse "$ROOT$link"
        fi
    done
}

install_scripts() {
    {
        script_head
        killall_script
    } >"$WORK/killall"
    put "$WORK/killall" "$BIN_DIR/dormouse-killall.sh" 0755 || true
    {
        script_head
        uninstall_script
    } >"$WORK/uninstall"
    put "$WORK/uninstall" "$BIN_DIR/$SERVICE-uninstall.sh" 0755 || true
}

# script_head: what the two scripts know of this installation.
script_head() {
    cat <<END
#!/bin/sh
# shellcheck disable=SC2034 # not each of the two scripts uses all of this
set -eu
INIT='$INIT'
SERVICE='$SERVICE'
SERVICE_FILE='$SERVICE_FILE'
ENV_FILE='$ENV_FILE'
BIN_DIR='$BIN_DIR'
DATA_DIR='$DATA_DIR'
END
    cat <<'END'
export LC_ALL=C
# Another system's root, as in install.sh; services and network are then left alone.
ROOT=${INSTALL_DORMOUSE_ROOT:-}
LIVE=true
if [ -n "$ROOT" ]; then
    ROOT=$(cd -P "$ROOT" && pwd -P)
    LIVE=false
    if [ "${INSTALL_DORMOUSE_SKIP_START:-}" = false ]; then LIVE=true; fi
fi

fatal() {
    echo "[ERROR] $*" >&2
    exit 1
}

# find_data_dir: DATA_DIR as given at installation, else by config.yaml, else the default.
find_data_dir() {
    if [ -z "$DATA_DIR" ] && [ -f "$ROOT/etc/dormouse/config.yaml" ]; then
        DATA_DIR=$(sed -n 's/^data-dir:[[:space:]]*["'\'']\{0,1\}\(\/[A-Za-z0-9\/_.+-]*\)["'\'']\{0,1\}[[:space:]]*$/\1/p' "$ROOT/etc/dormouse/config.yaml" | tail -n 1)
        DATA_DIR=${DATA_DIR%/}
    fi
    DATA_DIR=${DATA_DIR:-/var/lib/dormouse}
}

# services: the names of all installed services of Dormouse.
services() {
    suffix=
    if [ "$INIT" = systemd ]; then suffix=.service; fi
    for file in "$ROOT${SERVICE_FILE%/*}/dormouse$suffix" "$ROOT${SERVICE_FILE%/*}"/dormouse-*"$suffix"; do
        if [ -f "$file" ]; then
            file=${file##*/}
            echo "${file%"$suffix"}"
        fi
    done
}

# mounts: the mount points, deepest first.
mounts() {
    sed 's/^[^ ]* \([^ ]*\) .*/\1/; s/\\040/ /g; s/\\134/\\/g' /proc/self/mounts | sort -r
}

END
}

killall_script() {
    cat <<'SCRIPT'
# Stops Dormouse and all its pods, and removes what they have in the kernel: processes, mounts, network. Data stays.

stop_services() {
    for name in $(services); do
        case $INIT in
            systemd) systemctl stop "$name" ;;
            openrc) rc-service --ifstarted "$name" stop ;;
        esac || echo "[WARN]  cannot stop $name" >&2
    done
}

# pod_processes: the shims, known by the directory they are executed from, and all their descendants.
pod_processes() {
    dir=$(cd -P "$ROOT$DATA_DIR/data" 2>/dev/null && pwd -P) || return 0
    shims=
    for exe in /proc/[0-9]*/exe; do
        case $(readlink "$exe" 2>/dev/null) in
            "$dir"/*)
                exe=${exe#/proc/}
                shims="$shims ${exe%/exe}"
                ;;
        esac
    done
    [ -n "$shims" ] || return 0
    cat /proc/[0-9]*/status 2>/dev/null | awk -v shims="$shims" '
        /^Pid:/ { pid = $2 }
        /^PPid:/ { children[$2] = children[$2] " " pid }
        END {
            n = split(shims, queue, " ")
            for (i = 1; i <= n; i++) {
                if (queue[i] in seen) continue
                seen[queue[i]] = 1
                print queue[i]
                m = split(children[queue[i]], more, " ")
                for (j = 1; j <= m; j++) queue[++n] = more[j]
            }
        }'
}

kill_pods() {
    # A process can be born between listing and killing.
    for _ in 1 2 3 4 5; do
        processes=$(pod_processes)
        if [ -z "$processes" ]; then return; fi
        # shellcheck disable=SC2086 # a list of numbers
        kill -9 $processes 2>/dev/null || true
        sleep 1
    done
    echo "[WARN]  still running: $processes" >&2
}

# unmount_pods: only where pods mount; a disk mounted at the data directory, or in storage, is none of our business.
unmount_pods() {
    mounts | while IFS= read -r mount; do
        case $mount in
            "$ROOT"/run/dormouse/* | "$ROOT$DATA_DIR"/agent/containerd/?* | \
                "$ROOT"/var/lib/kubelet/pods/* | "$ROOT"/var/lib/kubelet/plugins/*)
                umount "$mount" || echo "[WARN]  cannot unmount $mount" >&2
                ;;
        esac
    done
}

remove_network() {
    ip link delete cni0 2>/dev/null || true
    nft list tables 2>/dev/null | while read -r _ family name; do
        case $name in
            kube-proxy | cni_hostport | cni_plugins_masquerade) nft delete table "$family" "$name" || true ;;
        esac
    done
    # Empty control groups only: rmdir refuses the others.
    find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null || true
}

main() {
    [ $# -eq 0 ] || fatal "usage: ${0##*/}"
    [ "$(id -u)" -eq 0 ] || [ -n "$ROOT" ] || fatal 'stopping the pods needs root: run this as root, or with sudo'
    find_data_dir
    if [ "$LIVE" = true ]; then stop_services; fi
    kill_pods
    unmount_pods
    if [ -z "$ROOT" ]; then remove_network; fi
}

main "$@"
SCRIPT
}

uninstall_script() {
    cat <<'SCRIPT'
# Removes Dormouse, its configuration and the cluster's data. Local volumes (storage) stay unless --purge is given.
# Mount points below the directories removed, and what is mounted there, stay in any case.

# remove PATH: a file, or a directory with all that is in it but mount points.
remove() (
    mounted=$(mounts | path=$1 awk '
        BEGIN { path = ENVIRON["path"] }
        $0 == path { at = 1 }
        substr($0, 1, length(path) + 1) == path "/" { below = 1 }
        END { print at ? "at" : below ? "below" : "" }')
    case $mounted in
        '') rm -rf "$1" ;;
        at) echo "[WARN]  left alone: $1 is a mount point" >&2 ;;
        below) remove_entries "$1" ;;
    esac
)

# remove_entries DIRECTORY: all that is in it, and the directory if nothing had to stay.
remove_entries() (
    for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        if [ -e "$entry" ] || [ -L "$entry" ]; then remove "$entry"; fi
    done
    rmdir "$1" 2>/dev/null || true
)

# remove_directory PATH: the same for a directory that may be reached through symlinks.
remove_directory() (
    if [ ! -d "$1" ]; then exit 0; fi
    directory=$(cd -P "$1" && pwd -P)
    remove "$directory"
    if [ -L "$1" ]; then rm -f "$1"; fi
)

remove_service() {
    case $INIT in
        systemd)
            if [ -n "$ROOT" ]; then
                systemctl --root="$ROOT" disable "$SERVICE" || true
            else
                systemctl disable "$SERVICE" || true
            fi
            ;;
        openrc) if [ "$LIVE" = true ]; then rc-update delete "$SERVICE" default || true; else rm -f "$ROOT/etc/runlevels/default/$SERVICE"; fi ;;
    esac
    rm -f "$ROOT$SERVICE_FILE" "$ROOT$ENV_FILE"
    if [ "$INIT" = systemd ] && [ "$LIVE" = true ]; then
        systemctl reset-failed "$SERVICE" 2>/dev/null || true
        systemctl daemon-reload || true
    fi
}

remove_data() {
    for name in server agent data; do
        remove_directory "$ROOT$DATA_DIR/$name"
    done
    if [ "$PURGE" = true ]; then
        remove_directory "$ROOT$DATA_DIR/storage"
    elif [ -d "$ROOT$DATA_DIR/storage" ]; then
        echo "[INFO]  Local volumes are kept in $ROOT$DATA_DIR/storage"
    fi
    rmdir "$ROOT$DATA_DIR" 2>/dev/null || true
    for dir in /etc/dormouse /run/dormouse /var/lib/kubelet /var/log/containers /var/log/pods; do
        remove_directory "$ROOT$dir"
    done
    # What CNI remembers of our pods, loopback included; others may keep theirs there too.
    for file in "$ROOT"/var/lib/cni/results/*; do
        if grep -qF '"netns":"/run/dormouse/' "$file" 2>/dev/null; then rm -f "$file"; fi
    done
    rmdir "$ROOT/var/lib/cni/results" "$ROOT/var/lib/cni" 2>/dev/null || true
}

remove_programs() {
    for name in kubectl crictl ctr; do
        if [ "$(readlink "$ROOT$BIN_DIR/$name" || true)" = dormouse ]; then rm -f "$ROOT$BIN_DIR/$name"; fi
    done
    rm -f "$ROOT$BIN_DIR/dormouse" "$ROOT$BIN_DIR/dormouse-killall.sh" "$ROOT$BIN_DIR/$SERVICE-uninstall.sh"
}

main() {
    PURGE=false
    for argument do
        case $argument in
            --purge) PURGE=true ;;
            *) fatal "\"$argument\" is not known; usage: ${0##*/} [--purge]" ;;
        esac
    done
    [ "$(id -u)" -eq 0 ] || [ -n "$ROOT" ] || fatal 'uninstalling needs root: run this as root, or with sudo'
    find_data_dir
    if [ "$(services)" != "$SERVICE" ] && [ -n "$(services)" ]; then
        # Others run from the same binary and the same data: remove this one only.
        if [ "$LIVE" = true ]; then
            case $INIT in
                systemd) systemctl stop "$SERVICE" || true ;;
                openrc) rc-service --ifstarted "$SERVICE" stop || true ;;
            esac
        fi
        remove_service
        rm -f "$ROOT$BIN_DIR/$SERVICE-uninstall.sh"
        echo "[INFO]  Other services of Dormouse stay: $(services | tr '\n' ' ')"
        return
    fi
    [ -x "$ROOT$BIN_DIR/dormouse-killall.sh" ] || fatal "$ROOT$BIN_DIR/dormouse-killall.sh is missing: run install.sh again, it writes it"
    "$ROOT$BIN_DIR/dormouse-killall.sh"
    remove_service
    remove_data
    remove_programs
    echo '[INFO]  Dormouse is uninstalled'
}

main "$@"
SCRIPT
}

# read_environment: sets SERVICE_VARIABLES, the names of the exported variables that the service gets.
read_environment() {
    proxy='[Pp][Rr][Oo][Xx][Yy]'
    SERVICE_VARIABLES=$(exported 'DORMOUSE_[A-Za-z0-9_]*' 'CONTAINERD_[A-Za-z0-9_]*' \
        "[Hh][Tt][Tt][Pp]_$proxy" "[Hh][Tt][Tt][Pp][Ss]_$proxy" "[Nn][Oo]_$proxy")
    for name in $SERVICE_VARIABLES; do
        eval "value=\$$name"
        case $value in
            *"$NEWLINE"*) fatal "$name has a line break in it" ;;
        esac
    done
}

# install_environment: the file with the variables of the service. Its first line names the binary, so that a binary
# which somebody put in place before this script ran counts as a change too.
install_environment() {
    {
        echo "# binary sha256:$BINARY_SUM"
        for name in $SERVICE_VARIABLES; do
            eval "value=\$$name"
            # Quoted so that systemd and a shell read the same.
            printf '%s="%s"\n' "$name" "$(printf '%s\n' "$value" | sed 's/[\\"$`]/\\&/g')"
        done
    } >"$WORK/env"
    if put "$WORK/env" "$ENV_FILE" 0600; then CHANGED=true; fi
}

install_service() {
    case $INIT in
        systemd)
            systemd_unit >"$WORK/service"
            mode=0644
            ;;
        openrc)
            openrc_service >"$WORK/service"
            mode=0755
            ;;
    esac
    if put "$WORK/service" "$SERVICE_FILE" "$mode"; then CHANGED=true; fi
}

# systemd_flags: the flags as they stand in ExecStart, each after a space.
systemd_flags() {
    while IFS= read -r flag; do
        case $flag in
            '' | *[!A-Za-z0-9/_.:=,@+-]*)
                printf ' "%s"' "$(printf '%s\n' "$flag" | sed 's/[\\"]/\\&/g; s/\$/$$/g; s/%/%%/g')" ;;
            *) printf ' %s' "$flag" ;;
        esac
    done <"$WORK/flags"
}

# quote: each line of the input in single quotes, for a shell.
quote() {
    sed "s/'/'\\\\''/g; s/^/'/; s/\$/'/"
}

# The same as packaging/systemd/dormouse.service; a test compares them.
systemd_unit() {
    cat <<END
[Unit]
Description=Dormouse, lightweight Kubernetes
Documentation=https://github.com/dormouse-k8s/dormouse
Wants=network-online.target
After=network-online.target

[Service]
Type=$TYPE
EnvironmentFile=-/etc/default/%N
EnvironmentFile=-/etc/sysconfig/%N
EnvironmentFile=-$ENV_FILE
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart=$BIN_DIR/dormouse server$(systemd_flags)
KillMode=process
Delegate=yes
Restart=always
RestartSec=5s
TimeoutStartSec=0
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
END
}

# The same as packaging/openrc/dormouse. OpenRC evaluates command_args once more: quoted twice.
openrc_service() {
    flags=$(quote <"$WORK/flags" | tr '\n' ' ')
    cat <<END
#!/sbin/openrc-run
description="Dormouse, lightweight Kubernetes"
supervisor=supervise-daemon
respawn_delay=5
respawn_max=0
command=$BIN_DIR/dormouse
command_args=$(printf 'server%s\n' "${flags:+ ${flags% }}" | quote)
pidfile=/run/$SERVICE.pid
output_log=/var/log/$SERVICE.log
error_log=/var/log/$SERVICE.log
rc_ulimit="-n 1048576"

depend() {
    want cgroups net
    after net firewall
}

start_pre() {
    modprobe -q br_netfilter
    modprobe -q overlay
    return 0
}

set -o allexport
[ ! -f /etc/environment ] || . /etc/environment
[ ! -f $ENV_FILE ] || . $ENV_FILE
set +o allexport
END
}

# run COMMAND...: runs it, or says so.
run() {
    if [ "$DRY_RUN" = true ]; then
        info "would run $*"
    else
        "$@"
    fi
}

enable_service() {
    info "Enabling $SERVICE at boot"
    case $INIT in
        systemd)
            if [ "$SKIP_START" = false ]; then run systemctl daemon-reload; fi
            if [ -n "$ROOT" ]; then
                run systemctl --root="$ROOT" enable "$SERVICE"
            else
                run systemctl enable "$SERVICE"
            fi
            ;;
        openrc)
            if [ "$SKIP_START" = false ]; then
                run rc-update add "$SERVICE" default
            else
                run mkdir -p "$ROOT/etc/runlevels/default"
                run ln -sf "$SERVICE_FILE" "$ROOT/etc/runlevels/default/$SERVICE"
            fi
            ;;
    esac
}

service_runs() {
    case $INIT in
        systemd) systemctl is-active --quiet "$SERVICE" ;;
        openrc) rc-service --quiet "$SERVICE" status ;;
    esac >/dev/null 2>&1
}

start_service() {
    if [ "$CHANGED" = false ] && [ "$FORCE_RESTART" = false ] && service_runs; then return; fi
    info "Starting $SERVICE"
    case $INIT in
        systemd) run systemctl restart "$SERVICE" || fatal "$SERVICE did not start: see journalctl -u $SERVICE" ;;
        openrc) run rc-service "$SERVICE" restart || fatal "$SERVICE did not start: see /var/log/$SERVICE.log" ;;
    esac
    info "Next: $BIN_DIR/dormouse kubectl get nodes"
}

cleanup() {
    rm -rf "$WORK"
    if [ "$DRY_RUN" = false ]; then rm -f "$ROOT$BIN_DIR/.dormouse.new"; fi
}

main() {
    DRY_RUN=false
    for argument do
        shift
        case $argument in
            --dry-run) DRY_RUN=true ;;
            --help | -h)
                usage
                return
                ;;
            *) set -- "$@" "$argument" ;;
        esac
    done
    CHANGED=false
    read_variables
    detect_init
    read_environment
    WORK=$(mktemp -d)
    trap cleanup EXIT
    trap 'exit 1' HUP INT TERM
    read_command "$@"
    find_binary

    if ! program nft >/dev/null; then
        warn 'nft is missing: Services and host ports need it; install the package nftables'
    fi
    if [ "$READ_ONLY" = false ]; then
        install_binary
        install_symlinks
        install_scripts
    fi
    install_environment
    install_service
    if [ "$CHANGED" = false ]; then info 'No change detected'; fi
    if [ "$SKIP_ENABLE" = true ]; then return; fi
    enable_service
    if [ "$SKIP_START" = false ]; then start_service; fi
}

{ main "$@"; }
