package osimage

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	grubPC  = "/usr/lib/grub/i386-pc"
	grubEFI = "/usr/lib/grub/x86_64-efi"
)

// The disk in sectors of 512 bytes: a place for GRUB's BIOS core, the EFI system partition, and the root as the last so that it can grow.
const (
	sector    = 512
	coreStart = 2048
	espStart  = 4096
	espSize   = 32 << 20 / sector
	rootStart = espStart + espSize
	tailSize  = 2048 // the second partition table
)

// diskIDs are derived from the recipe, so that the same recipe gives the same disk.
type diskIDs struct {
	disk, core, esp, root, rootFS, hashSeed, fat string
}

func uuids(key string) diskIDs {
	id := func(what string) string {
		h := sha256.Sum256([]byte(key + " " + what))
		h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // version 8 (RFC 9562)
		return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
	}
	return diskIDs{disk: id("disk"), core: id("core"), esp: id("esp"), root: id("root"), rootFS: id("rootfs"), hashSeed: id("hash"),
		fat: strings.ToUpper(id("fat")[:8])}
}

// disk makes a bootable qcow2 of a root directory.
func (b *build) disk(ctx context.Context, size int64, root, epoch string, id diskIDs, out string) error {
	b.next("lay out the disk")
	raw := filepath.Join(b.work, "disk.raw")
	f, err := os.Create(raw)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	env := []string{"SOURCE_DATE_EPOCH=" + epoch, "E2FSPROGS_FAKE_TIME=" + epoch}
	if _, err := b.command(ctx, nil, "", "sgdisk", "-U", id.disk, "-a", "1",
		"-n", fmt.Sprintf("1:%d:%d", coreStart, espStart-1), "-t", "1:ef02", "-u", "1:"+id.core, "-c", "1:bios",
		"-n", fmt.Sprintf("2:%d:%d", espStart, rootStart-1), "-t", "2:ef00", "-u", "2:"+id.esp, "-c", "2:efi",
		"-n", fmt.Sprintf("3:%d:%d", rootStart, size/sector-tailSize-1), "-t", "3:8304", "-u", "3:"+id.root, "-c", "3:root", raw); err != nil {
		return err
	}
	blocks := (size/sector - tailSize - rootStart) * sector / 4096
	// GRUB 2.06 reads neither of the features that are taken off.
	if _, err := b.command(ctx, env, "", "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum_seed,^orphan_file", "-L", "root", "-U", id.rootFS,
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,root_owner=0:0", int64(rootStart)*sector, id.hashSeed), "-d", root, raw, fmt.Sprint(blocks)); err != nil {
		return err
	}
	if err := b.loaders(ctx, raw, env, id); err != nil {
		return err
	}
	b.next("compress")
	_, err = b.command(ctx, nil, "", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, out)
	return err
}

// loaders puts GRUB on the disk twice: for BIOS and for UEFI.
func (b *build) loaders(ctx context.Context, raw string, env []string, id diskIDs) error {
	early := filepath.Join(b.work, "early.cfg")
	text := "search --no-floppy --fs-uuid --set=root " + id.rootFS + "\nset prefix=($root)/boot/grub\nconfigfile ($root)/boot/grub/grub.cfg\n"
	if err := os.WriteFile(early, []byte(text), 0o644); err != nil {
		return err
	}
	mods := []string{"part_gpt", "ext2", "search", "search_fs_uuid", "linux", "normal", "configfile", "serial", "terminal", "echo", "test", "gzio", "minicmd", "reboot", "halt"}
	core, efi := filepath.Join(b.work, "core.img"), filepath.Join(b.work, "bootx64.efi")
	if _, err := b.command(ctx, env, "", "grub-mkimage", append([]string{"-d", grubPC, "-O", "i386-pc", "-p", "/boot/grub", "-c", early, "-o", core, "biosdisk"}, mods...)...); err != nil {
		return err
	}
	if _, err := b.command(ctx, env, "", "grub-mkimage", append([]string{"-d", grubEFI, "-O", "x86_64-efi", "-p", "/boot/grub", "-c", early, "-o", efi, "efi_gop", "all_video"}, mods...)...); err != nil {
		return err
	}
	esp := filepath.Join(b.work, "esp.img")
	if err := os.WriteFile(esp, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(esp, espSize*sector); err != nil {
		return err
	}
	if _, err := b.command(ctx, env, "", "mkfs.vfat", "--invariant", "-F", "16", "-n", "EFI", "-i", id.fat, esp); err != nil {
		return err
	}
	if _, err := b.command(ctx, env, "", "mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"); err != nil {
		return err
	}
	if _, err := b.command(ctx, env, "", "mcopy", "-i", esp, efi, "::/EFI/BOOT/BOOTX64.EFI"); err != nil {
		return err
	}
	return installGRUB(raw, core, esp)
}

// installGRUB writes the parts that stand outside of the root: the boot sector, the core, the EFI partition.
//
// The two numbers that grub-setup would fill in are GRUB_BOOT_MACHINE_KERNEL_SECTOR in boot.img (where the core is) and the first
// entry of the block list at the end of the core's first sector (where the rest of it is): grub-core/boot/i386/pc/{boot,diskboot}.S.
func installGRUB(raw, corePath, espPath string) error {
	boot, err := os.ReadFile(filepath.Join(grubPC, "boot.img"))
	if err != nil {
		return err
	}
	core, err := os.ReadFile(corePath)
	if err != nil {
		return err
	}
	if len(boot) != sector || len(core) < 2*sector || len(core) > (espStart-coreStart)*sector {
		return fmt.Errorf("GRUB's boot.img has %d bytes and its core %d: not the sizes that are expected", len(boot), len(core))
	}
	binary.LittleEndian.PutUint64(boot[0x5c:], coreStart)
	boot[0x66], boot[0x67] = 0x90, 0x90 // trust the drive number that the firmware gives
	binary.LittleEndian.PutUint64(core[sector-12:], coreStart+1)
	f, err := os.OpenFile(raw, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// The partition table's own part of the sector starts at 440.
	if _, err := f.WriteAt(boot[:440], 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(core, coreStart*sector); err != nil {
		return err
	}
	esp, err := os.Open(espPath)
	if err != nil {
		return err
	}
	defer esp.Close()
	_, err = io.Copy(io.NewOffsetWriter(f, espStart*sector), esp)
	return errors.Join(err, f.Sync())
}
