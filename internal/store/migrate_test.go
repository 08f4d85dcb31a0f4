package store

import (
	"errors"
	"strings"
	"testing"

	droverv1 "drover/api/drover/v1"
)

func TestOldSchemasMigrateAndNewerAreRefused(t *testing.T) {
	ctx := testContext(t)
	s := openTest(t, t.TempDir())
	v1 := vmsOf(t, s)
	create(t, v1, newVM("a", 1))
	create(t, v1, newVM("b", 2))
	kind := Kind[*droverv1.VM]{Name: "vm", Version: 3, Steps: map[uint32]Step{
		1: MessageStep(func(vm *droverv1.VM) error { vm.Spec.Cpus *= 10; return nil }),
		2: MessageStep(func(vm *droverv1.VM) error { vm.Spec.Cpus++; return nil }),
	}}
	v3, err := NewCollection(s, kind)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := v3.Get(ctx, "a"); err != nil || got.Spec.Cpus != 11 {
		t.Fatalf("migrated on read: %v, %v", got, err)
	}
	if _, err := v1.Get(ctx, "a"); err != nil {
		t.Errorf("a read wrote: %v", err)
	}
	if n, err := v3.MigrateAll(ctx); err != nil || n != 2 {
		t.Fatalf("migrate all: %d, %v", n, err)
	}
	if n, err := v3.MigrateAll(ctx); err != nil || n != 0 {
		t.Errorf("migrate all again: %d, %v", n, err)
	}
	if got, err := v3.Get(ctx, "b"); err != nil || got.Spec.Cpus != 21 {
		t.Errorf("after migration: %v, %v", got, err)
	}
	_, err = v1.Get(ctx, "a")
	wantErr(t, err, ErrNewerSchema, `vm "a"`, "version 3", "upgrade")
	_, _, err = v1.List(ctx)
	wantErr(t, err, ErrNewerSchema)
	_, err = v1.MigrateAll(ctx)
	wantErr(t, err, ErrNewerSchema)
	_, err = v1.Mutate(ctx, "a", func(vm *droverv1.VM) error { vm.Spec.Cpus = 0; return nil })
	wantErr(t, err, ErrNewerSchema)
	wantErr(t, v1.Watch(ctx, 0, func([]Event[*droverv1.VM]) error { return nil }), ErrNewerSchema)
	if got, err := v3.Get(ctx, "a"); err != nil || got.Spec.Cpus != 11 {
		t.Errorf("after the refusals: %v, %v", got, err)
	}

	broken := errors.New("cannot")
	v4, err := NewCollection(s, Kind[*droverv1.VM]{Name: "vm", Version: 4, Steps: map[uint32]Step{
		1: kind.Steps[1], 2: kind.Steps[2], 3: func([]byte) ([]byte, error) { return nil, broken },
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = v4.Get(ctx, "a")
	wantErr(t, err, broken, `migrate vm "a"`, "version 3")
}

func TestKindsAreChecked(t *testing.T) {
	for says, err := range map[string]error{
		"kind name": second(newCodec(Kind[*droverv1.VM]{Name: "V/M"})),
		"no step":   second(newCodec(Kind[*droverv1.VM]{Name: "vm", Version: 2})),
		"no meta":   second(newCodec(Kind[*droverv1.VMSpec]{Name: "spec"})),
	} {
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v", says, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
