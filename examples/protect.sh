#!/bin/sh
# A backup tool in a page: a full copy and then an increment of every disk of a VM, by the data protection API, curl, jq, nbdcopy and qemu-img.
# Usage: DROVER_TOKEN=… protect.sh MANAGER:PORT CA.pem VM DIRECTORY        (drover token create, drover login)
set -eu
manager=$1 ca=$2 vm=$3 dir=$4
mkdir -p "$dir"
api() {
	curl -sS --fail-with-body --cacert "$ca" --connect-to "manager.drover.internal::${manager%:*}:" -H "Authorization: Bearer $DROVER_TOKEN" -H 'Content-Type: application/json' \
		"https://manager.drover.internal:${manager##*:}/drover.v1.ProtectionService/$1" -d "$2"
}

point=$(api CreatePoint "{\"vm\": \"$vm\"}")
name=$(echo "$point" | jq -r .name)
trap 'api Release "{\"name\": \"$name\"}" >/dev/null' EXIT
tls=$(mktemp -d)
echo "$point" | jq -r .ca >"$tls/ca-cert.pem"

echo "$point" | jq -c '.disks[]' | while read -r disk; do
	d=$(echo "$disk" | jq -r .name)
	uri="$(echo "$disk" | jq -r .uri)?tls-certificates=$tls"
	if [ -e "$dir/$d.change" ]; then
		since=$(cat "$dir/$d.change")
		# What changed since the last time, piece by piece into the copy.
		address=${uri#nbds://} address=${address%%\?*}
		server=${address%%/*} export=${address#*/}
		api Changed "{\"point\": \"$name\", \"disk\": \"$d\", \"since\": \"$since\"}" | jq -r '.extents[]? | "\(.offset // 0) \(.length)"' >"$tls/changed"
		while read -r offset length; do
			qemu-img dd --object "tls-creds-x509,id=tls,dir=$tls,endpoint=client" --image-opts -O raw bs=65536 skip=$((offset / 65536)) count=$(((offset + length + 65535) / 65536)) \
				"if=driver=nbd,host=${server%:*},port=${server##*:},export=$export,tls-creds=tls" of="$tls/piece"
			dd if="$tls/piece" of="$dir/$d.raw" bs=64K oflag=seek_bytes seek="$offset" conv=notrunc status=none
		done <"$tls/changed"
	else
		nbdcopy "$uri" "$dir/$d.raw"
	fi
	echo "$disk" | jq -r .changeId >"$dir/$d.change"
done
