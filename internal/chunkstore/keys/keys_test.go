package keys

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"drover/internal/chunkstore/pack"
)

var cheap = Cost{Time: 1, Memory: 8, Threads: 1}

func config() *Config {
	return &Config{Format: Format, Version: 1, ID: strings.Repeat("0f", 16), BlockSize: DefaultBlockSize, Hash: BLAKE3, Cipher: AES256GCM}
}

func TestConfig(t *testing.T) {
	c := config()
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseConfig(b); err != nil || *got != *c {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, k := range map[string]struct {
		change func(*Config)
		want   error
	}{
		"newer":      {func(c *Config) { c.Version = 2 }, ErrNewer},
		"older":      {func(c *Config) { c.Version = 0 }, ErrForeign},
		"foreign":    {func(c *Config) { c.Format = "restic" }, ErrForeign},
		"id":         {func(c *Config) { c.ID = "x" }, ErrForeign},
		"id upper":   {func(c *Config) { c.ID = strings.Repeat("0F", 16) }, ErrForeign},
		"block size": {func(c *Config) { c.BlockSize = 5000 }, nil},
		"too large":  {func(c *Config) { c.BlockSize = 8 << 20 }, nil},
		"too small":  {func(c *Config) { c.BlockSize = 2048 }, nil},
		"hash":       {func(c *Config) { c.Hash = "md5" }, nil},
		"cipher":     {func(c *Config) { c.Cipher = "rot13" }, nil},
		"parity":     {func(c *Config) { c.Parity = "1+1" }, nil},
	} {
		c := config()
		k.change(c)
		b, _ := c.Encode()
		if _, err := ParseConfig(b); err == nil || k.want != nil && !errors.Is(err, k.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseConfig([]byte("backup\n")); !errors.Is(err, ErrForeign) {
		t.Errorf("no JSON: %v", err)
	}
}

func TestWrap(t *testing.T) {
	master := bytes.Repeat([]byte{5}, MasterSize)
	w, err := WrapPassphrase(master, "correct horse", "repo", "name", cheap, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, master) {
		t.Error("the master key stands there bare")
	}
	if w, err = ParseWrapped(b); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Unwrap("correct horse", "repo", "name"); err != nil || !bytes.Equal(got, master) {
		t.Errorf("unwrap: %v", err)
	}
	for _, c := range [][3]string{{"wrong horse", "repo", "name"}, {"correct horse", "other", "name"}, {"correct horse", "repo", "other"}, {"", "repo", "name"}} {
		if _, err := w.Unwrap(c[0], c[1], c[2]); !errors.Is(err, ErrWrongKey) {
			t.Errorf("%v: %v", c, err)
		}
	}
	if _, err := WrapPassphrase(master, "", "repo", "name", cheap, nil); err == nil {
		t.Error("an empty passphrase is taken")
	}

	r, text, err := WrapRecovery(master, "repo", "recovery", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{text, strings.ToLower(text), strings.ReplaceAll(text, "-", " "), strings.ReplaceAll(text, "-", "") + "\n", strings.ReplaceAll(text, "O", "0")} {
		if got, err := r.Unwrap(s, "repo", "recovery"); err != nil || !bytes.Equal(got, master) {
			t.Errorf("recovery key %q: %v", s, err)
		}
	}
	for _, s := range []string{"", text[1:], text + "A", "hello"} {
		if _, err := r.Unwrap(s, "repo", "recovery"); !errors.Is(err, ErrWrongKey) {
			t.Errorf("recovery key %q: %v", s, err)
		}
	}
}

func TestWrappedThatAsksForTooMuch(t *testing.T) {
	for _, s := range []string{
		`{"kdf":"argon2id","time":1,"memory":4294967295,"threads":1,"salt":"MTIzNDU2Nzg=","wrapped":""}`,
		`{"kdf":"argon2id","time":4000000000,"memory":64,"threads":1,"salt":"MTIzNDU2Nzg=","wrapped":""}`,
		`{"kdf":"argon2id","time":1,"memory":64,"threads":0,"salt":"MTIzNDU2Nzg=","wrapped":""}`,
		`{"kdf":"none","wrapped":"MTIz"}`, `{"kdf":"scrypt"}`, `[]`, ``,
	} {
		if _, err := ParseWrapped([]byte(s)); err == nil {
			t.Errorf("%s: taken", s)
		}
	}
}

func TestKeysDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []string{strings.Repeat("0f", 16), strings.Repeat("0e", 16)} {
		c := config()
		c.ID = id
		r := NewRing(c, Derive("id", []byte(id)))
		_, idKey := r.IDKey()
		for name, k := range map[string][]byte{"id": idKey, "log": r.Log(), "master": r.Master()} {
			if other, ok := seen[string(k)]; ok {
				t.Errorf("%s of %s is %s", name, id, other)
			}
			seen[string(k)] = name + id
		}
	}
	r := NewRing(config(), make([]byte, 32))
	packed := map[string]bool{}
	for _, g := range []uint32{1, 2} {
		for _, id := range []pack.PackID{{1}, {2}} {
			s, err := r.Sealer(g, id)
			if err != nil {
				t.Fatal(err)
			}
			packed[string(s.Seal(nil, []byte("same"), 0, nil))] = true
		}
	}
	if len(packed) != 4 {
		t.Error("packs or generations share a key")
	}
}

func TestIDs(t *testing.T) {
	for _, kind := range []string{BLAKE3, SHA256} {
		a, b := NewHasher(kind, make([]byte, 32)), NewHasher(kind, bytes.Repeat([]byte{1}, 32))
		block := make([]byte, 4096)
		if a.Block(block) == b.Block(block) {
			t.Errorf("%s: the key does not matter", kind)
		}
		first := a.Block(block)
		if again := a.Block(block); again != first {
			t.Errorf("%s: the id changes", kind)
		}
		none := func(func(pack.ID) bool) {}
		one := func(y func(pack.ID) bool) { y(pack.ID{1}) }
		ids := map[pack.ID]bool{a.Block(block): true, a.Page(0, 1, none): true, a.Page(1, 1, none): true, a.Page(0, 2, none): true, a.Page(0, 1, one): true,
			a.Description(nil): true, a.Description([]byte{0}): true, a.Description([]byte{0, 0}): true}
		if len(ids) != 8 {
			t.Errorf("%s: %d different ids of 8 things", kind, len(ids))
		}
		if n := testing.AllocsPerRun(100, func() { a.Block(block) }); n != 0 {
			t.Errorf("%s: %v allocations for a block", kind, n)
		}
	}
}

func FuzzConfig(f *testing.F) {
	b, _ := config().Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseConfig(b); err == nil {
			if c.RawID() == [16]byte{} && c.ID != strings.Repeat("0", 32) {
				t.Fatal("an id that is none")
			}
		}
	})
}

func FuzzWrapped(f *testing.F) {
	w, text, _ := WrapRecovery(make([]byte, 32), "repo", "r", nil)
	b, _ := w.Encode()
	f.Add(b, text)
	f.Fuzz(func(t *testing.T, b []byte, text string) {
		if w, err := ParseWrapped(b); err == nil && w.IsRecovery() {
			_, _ = w.Unwrap(text, "repo", "r")
		}
		_, _ = ParseRecovery(text)
	})
}
