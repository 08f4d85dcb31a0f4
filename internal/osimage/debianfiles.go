package osimage

// debianBefore is there before the first package, as it decides what the kernel's scripts make. The initramfs holds
// drivers for disks alone: a general one takes ten seconds longer to unpack without KVM.
var debianBefore = map[string]string{
	"etc/initramfs-tools/conf.d/drover":          "MODULES=list\nCOMPRESS=zstd\n",
	"usr/share/initramfs-tools/modules.d/drover": "virtio_pci\nvirtio_mmio\nvirtio_blk\nvirtio_scsi\nsd_mod\nsr_mod\nahci\nata_piix\nnvme\nvmw_pvscsi\next4\n",
	"etc/kernel-img.conf":                        "do_symlinks = yes\nimage_dest = /\n",
}

// debianHook runs in the image after all packages are there. It must not hold a single quote.
const debianHook = `systemctl enable systemd-networkd systemd-resolved serial-getty@ttyS0.service
systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service dpkg-db-backup.timer
passwd -l root`

// debianAfter is written over what packages brought.
var debianAfter = map[string]string{
	// This machine's mirror is not the guest's: cloud-init writes Debian's own at the first boot.
	"etc/apt/sources.list": "# cloud-init writes this at the first boot\n",
	"etc/cloud/cloud.cfg.d/90_drover.cfg": `datasource_list: [NoCloud, ConfigDrive, None]
system_info:
  network:
    renderers: [networkd]
apt:
  preserve_sources_list: false
locale: false
preserve_hostname: false
manage_etc_hosts: true
# An RSA key takes many seconds to find without KVM, and no client of today needs it.
ssh_genkeytypes: [ed25519, ecdsa]
growpart:
  mode: auto
  devices: ["/"]
`,
	"etc/default/locale":                   "LANG=C.UTF-8\n",
	"etc/ssh/sshd_config.d/50-drover.conf": "PasswordAuthentication no\nKbdInteractiveAuthentication no\n",
	"etc/hosts":                            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
}

// grubConfig starts the newest kernel: Debian's kernel packages keep /vmlinuz and /initrd.img pointing at it, so that
// the image needs no GRUB package of its own.
func grubConfig(rootUUID string) string {
	return `set timeout=0
set default=0
serial --unit=0 --speed=115200
terminal_output serial
search --no-floppy --fs-uuid --set=root ` + rootUUID + `
menuentry "Debian" {
	linux /vmlinuz root=UUID=` + rootUUID + ` ro console=tty0 console=ttyS0,115200n8 quiet
	initrd /initrd.img
}
menuentry "Debian, previous kernel" {
	linux /vmlinuz.old root=UUID=` + rootUUID + ` ro console=tty0 console=ttyS0,115200n8
	initrd /initrd.img.old
}
`
}
