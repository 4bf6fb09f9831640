#!/bin/bash
# Process 1 of a box, in namespaces of its own: makes a root to write to, and becomes systemd.
#   boot.sh FOLDER BIND...      BIND: SOURCE:TARGET
# The root is the machine's own, with everything that is written kept in memory. What a machine
# would start besides is left out: generators, enabled units, and the vendor's wants.
set -euo pipefail
folder=$1
shift
root=$folder/root m=$folder/root/m
mount -t tmpfs -o mode=0755 vrha-box "$root"
mkdir "$root/upper" "$root/work" "$m"
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$m"
for where in /tmp /var/tmp /run /dev; do
    mount -t tmpfs -o mode=0755,nosuid tmpfs "$m$where"
done
chmod 1777 "$m/tmp" "$m/var/tmp"
mount -t proc -o nosuid,nodev,noexec proc "$m/proc"
mount --bind "$m/proc/sys" "$m/proc/sys"
mount --bind "$m/proc/sys/net" "$m/proc/sys/net"
mount -o remount,bind,ro "$m/proc/sys"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$m/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$m/sys/fs/cgroup"
for device in null zero full random urandom tty; do
    cp -a "/dev/$device" "$m/dev/$device"
done
mkdir -p "$m/dev/shm" "$m/dev/pts" "$m/run/host" "$m/run/lock"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$m/dev/pts"
ln -s pts/ptmx "$m/dev/ptmx"
ln -s /proc/self/fd "$m/dev/fd"
: >"$m/dev/console"
mount --bind /dev/null "$m/dev/console"

etc=$m/etc/systemd/system
mount -t tmpfs tmpfs "$m/lib/systemd/system-generators"
mkdir -p "$etc"
mount -t tmpfs -o mode=0755 tmpfs "$etc"
for unit in "$m"/lib/systemd/system/*.target.wants/*; do
    case ${unit##*/} in
    *.target | systemd-journald* | dbus.*) ;;
    *) ln -sfn /dev/null "$etc/${unit##*/}" ;;
    esac
done
cp -a "$folder/units/." "$etc/"
mkdir -p "$m/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' >"$m/etc/systemd/journald.conf.d/box.conf"
tr -d - </proc/sys/kernel/random/uuid >"$m/etc/machine-id"
for bind in "$@"; do
    mkdir -p "$m${bind#*:}"
    mount --rbind "${bind%%:*}" "$m${bind#*:}"
done
mount --bind "$folder/host" "$m/run/host"
cd "$m"
mkdir -p mnt
pivot_root . mnt
umount -l /mnt
# As on a machine that booted: otherwise units that hide their mounts would go unnoticed.
mount --make-rshared /
exec env -i container=vrha-box PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=box.target --show-status=no --log-target=journal \
    </dev/null >/dev/null 2>&1
