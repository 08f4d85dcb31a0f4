package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	droverv1 "drover/api/drover/v1"
)

func TestEnvelopeGolden(t *testing.T) {
	// VM{meta:{name:"a"} spec:{cpus:2}} at schema version 300.
	const want = "d701ac02" + "cc3a360a" + "0a030a0161" + "12021802"
	c, err := newCodec(Kind[*droverv1.VM]{Name: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	c.version = 300
	vm := newVM("a", 2)
	vm.Meta.Revision = 99 // never stored
	b, err := c.encode(vm)
	if err != nil || hex.EncodeToString(b) != want {
		t.Errorf("encoded as %x, %v; want %s", b, err, want)
	}
	if vm.Meta.Revision != 99 {
		t.Error("encode changed its argument")
	}
}

func TestEnvelopeRefusesDamage(t *testing.T) {
	good := seal(3, []byte("payload"))
	if v, p, err := unseal(good); v != 3 || string(p) != "payload" || err != nil {
		t.Fatalf("unseal: %d, %q, %v", v, p, err)
	}
	for i := range good {
		if _, _, err := unseal(good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut at %d: %v", i, err)
		}
		bad := bytes.Clone(good)
		bad[i] ^= 0x80
		if v, _, err := unseal(bad); err == nil && v == 3 {
			t.Errorf("flipped at %d: taken", i)
		}
	}
	newer := bytes.Clone(good)
	newer[1] = envelopeVersion + 1
	if _, _, err := unseal(newer); !errors.Is(err, ErrNewerSchema) {
		t.Errorf("newer envelope: %v", err)
	}
}

func FuzzUnseal(f *testing.F) {
	f.Add(seal(1, nil))
	f.Add(seal(1<<20, []byte{0x0a, 0x03, 0x0a, 0x01, 0x61}))
	f.Add([]byte{envelopeMagic, envelopeVersion, 0x80})
	c, err := newCodec(Kind[*droverv1.VM]{Name: "vm"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, p, err := unseal(b); err == nil {
			if v2, p2, err := unseal(seal(v, p)); err != nil || v2 != v || !bytes.Equal(p2, p) {
				t.Fatalf("%x does not come back: %d, %x, %v", b, v2, p2, err)
			}
		} else if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewerSchema) {
			t.Fatalf("%x: %v", b, err)
		}
		if m, _, err := c.decode("a", b, 1); err == nil && m.Meta.Name != "a" {
			t.Fatalf("%x decodes to %v", b, m)
		}
	})
}
