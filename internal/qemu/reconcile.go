package qemu

import "context"

func (p *Process) reconcile(ctx context.Context) error { return nil }
