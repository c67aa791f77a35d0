#!/bin/sh
# Builds the container images of edgekit without a container daemon: Debian's packages by mmdebstrap, Python packages by uv
# with the hashes of constraints/, and the image (OCI layout) by umoci. Run it as root on Debian, in the project's folder.
#
#   deploy/containers/build.sh OUT ROLE...        ROLE: agent, controller or cloud
#
# It leaves OUT/rootfs-ROLE (the root filesystem) and OUT/edgekit-ROLE (the image, tag latest). To load an image:
#   skopeo copy oci:OUT/edgekit-cloud:latest docker://registry.example/edgekit-cloud:1
#
# Environment: UV (default: uv), WHEEL (edgekit's wheel; default: built from this folder), SUITE (default: bookworm).
set -eu

[ $# -ge 2 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$1; shift
uv=${UV:-uv}
suite=${SUITE:-bookworm}
here=$(dirname "$0")
for role; do
    [ -f "$here/$role.conf" ] || { echo "there is no role $role; roles: agent, controller, cloud" >&2; exit 2; }
done
for tool in mmdebstrap umoci "$uv"; do
    command -v "$tool" > /dev/null || {
        echo "$tool is missing; run: apt-get install mmdebstrap umoci, and pip install uv (or name it with UV=...)" >&2; exit 1
    }
done
[ "$(id -u)" = 0 ] || { echo "run this as root: mmdebstrap and chroot need it" >&2; exit 1; }
mkdir -p "$out"

wheel=${WHEEL:-}
if [ -z "$wheel" ]; then
    rm -rf "$out/wheel"
    "$uv" build --quiet --wheel --out-dir "$out/wheel" .
    wheel=$(echo "$out"/wheel/*.whl)
fi

# One base for all roles: Python of Debian, authorities for TLS, a user without rights. No manuals, no translations.
base=$out/rootfs-base
if [ ! -f "$base.made" ]; then
    rm -rf "$base"
    mmdebstrap --quiet --variant=minbase --include=python3,ca-certificates \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --customize-hook='chroot "$1" useradd --uid 10001 --create-home --home-dir /var/lib/edgekit --shell /usr/sbin/nologin edgekit' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/var/log/* "$1"/etc/hostname "$1"/etc/resolv.conf' \
        "$suite" "$base"
    touch "$base.made"
fi
version=$(chroot "$base" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')

for role; do
    ENTRYPOINT='' COMMAND='' PORTS=''
    . "$here/$role.conf"
    root=$out/rootfs-$role image=$out/edgekit-$role
    rm -rf "$root" "$image"
    cp -a "$base" "$root"
    install() {
        target=$root/opt/edgekit/$1; shift
        "$uv" pip install --quiet --target "$target" --python-version "$version" --link-mode=copy \
            --python-platform "$(uname -m)-manylinux_2_28" --only-binary=:all: "$@"
        rm -rf "$target/bin"  # scripts for the interpreter of this machine
    }
    install packages --require-hashes -r "constraints/$role.txt"
    install own --no-deps "$wheel"
    chroot "$root" python3 -m compileall -q /opt/edgekit > /dev/null || true  # a package may hold a broken example
    umoci init --layout "$image"
    umoci new --image "$image:latest"
    # Three layers, so that a new edgekit is a small download, and all roles share the first one.
    umoci insert --image "$image:latest" "$base" /
    umoci insert --image "$image:latest" "$root/opt/edgekit/packages" /opt/edgekit/packages
    umoci insert --image "$image:latest" "$root/opt/edgekit/own" /opt/edgekit/own
    arguments=''
    for word in $ENTRYPOINT; do arguments="$arguments --config.entrypoint $word"; done
    for word in $COMMAND; do arguments="$arguments --config.cmd $word"; done
    for port in $PORTS; do arguments="$arguments --config.exposedports $port"; done
    # shellcheck disable=SC2086
    umoci config --image "$image:latest" $arguments --config.user 10001:10001 --config.workingdir /var/lib/edgekit \
        --config.env PYTHONPATH=/opt/edgekit/own:/opt/edgekit/packages --config.env PYTHONUNBUFFERED=1 --config.env HOME=/var/lib/edgekit \
        --config.env PATH=/usr/local/bin:/usr/bin:/bin
    umoci gc --layout "$image"
    echo "$image: $(du -sm "$root" | cut -f1) MiB unpacked, $(du -sm "$image" | cut -f1) MiB packed"
done
