package unit

import (
	"errors"
	"math"
	"testing"
	"time"

	v1 "drover/api/drover/v1"

	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "4096": 4096, "10b": 10, "512M": 512 << 20, "512m": 512 << 20, "2GiB": 2 << 30, "2gb": 2 << 30, "1.5G": 3 << 29, " 1 T ": 1 << 40,
		"8P": 8 << 50, "9223372036854775807": math.MaxInt64, "0.5K": 512,
	} {
		got, err := ParseSize(in)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "M", "-1", "1e9", "1.2.3G", "10X", "10iB5", "0.3", "9223372036854775808", "1000000000000P", "five", "1/2G", "10Mi b", "NaN", "0x10"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d; want an error", in, got)
		}
	}
	if _, err := ParseSize("lots"); !errors.Is(err, ErrSize) {
		t.Errorf("error %v does not say what is allowed", err)
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"512M", "1.5GiB", "", "9223372036854775808", "1..G"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil && n < 0 {
			t.Errorf("ParseSize(%q) = %d", s, n)
		}
	})
}

func TestSize(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 512 << 20: "512 MiB", 3 << 29: "1.5 GiB", 1<<30 - 1: "1 GiB", 123456789: "118 MiB",
		math.MaxInt64: "8 EiB", math.MinInt64: "-8 EiB",
	} {
		if got := Size(in); got != want {
			t.Errorf("Size(%d) = %q; want %q", in, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for in, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 119 * time.Second: "119s", 192 * time.Second: "3m12s", 11*time.Minute + 5*time.Second: "11m",
		5*time.Hour + 20*time.Minute: "5h20m", 11 * time.Hour: "11h", 50 * time.Hour: "2d", 800 * 24 * time.Hour: "2y70d",
	} {
		if got := Span(in); got != want {
			t.Errorf("Span(%v) = %q; want %q", in, got, want)
		}
	}
	if got := Age(time.Unix(100, 0), nil); got != "-" {
		t.Errorf("Age(nil) = %q", got)
	}
	if got := Age(time.Unix(1000, 0), timestamppb.New(time.Unix(990, 0))); got != "10s" {
		t.Errorf("Age = %q", got)
	}
}

func TestEnum(t *testing.T) {
	if got := Word(v1.VMPhase_VM_PHASE_IO_ERROR); got != "io-error" {
		t.Errorf("Word = %q", got)
	}
	if got := Word(v1.VMPhase_VM_PHASE_UNSPECIFIED); got != "" {
		t.Errorf("Word of zero = %q", got)
	}
	if got := Word(v1.VMPhase(99)); got != "99" {
		t.Errorf("Word of an unknown value = %q", got)
	}
	d := v1.DiskBus(0).Descriptor()
	for _, s := range []string{"virtio-blk", "VIRTIO_BLK", "DISK_BUS_VIRTIO_BLK"} {
		if n, err := ParseEnum(d, s); err != nil || n != 1 {
			t.Errorf("ParseEnum(%q) = %d, %v", s, n, err)
		}
	}
	if _, err := ParseEnum(d, "ide"); err == nil || err.Error() != `"ide" is none of virtio-blk, virtio-scsi, sata` {
		t.Errorf("ParseEnum(ide): %v", err)
	}
}
