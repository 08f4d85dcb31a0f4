package host

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"

	v1 "drover/api/drover/v1"
)

// A host without VMs: it serves repositories, says that it lives, and renews its certificate. What else an agent does, it has no part of: no fabric,
// no stores, no watch of what is wanted, and no NodeService.

// noVMs refuses a state directory that holds VMs: nobody would look after them.
func (a *agent) noVMs() error {
	uids, err := a.records()
	if err != nil {
		return fmt.Errorf("read the VMs' records: %w", err)
	}
	if len(uids) > 0 {
		return fmt.Errorf("%w: %s is the state of a host that holds VMs (%d); start it by `drover host`, which serves repositories too, or give another directory by --state",
			ErrConfig, filepath.Clean(a.cfg.StateDir), len(uids))
	}
	return nil
}

func (a *agent) runRepositories(ctx context.Context, listener net.Listener) (err error) {
	life, end := context.WithCancel(ctx)
	defer end()
	a.life = life
	servers, err := a.serve(life, listener)
	if err != nil {
		return err
	}
	var parts sync.WaitGroup
	for _, part := range []func(context.Context){a.report, a.keepCertificate, a.sample} {
		parts.Go(func() { part(life) })
	}
	a.log.Info("repositories are served", "listen", listener.Addr().String(), "advertise", a.address)
	select {
	case <-ctx.Done():
	case err = <-servers.failed:
		err = fmt.Errorf("serve: %w", err)
	}
	end()
	servers.close()
	parts.Wait()
	a.actors.Wait()
	return err
}

// datastoreReports is the state of all datastores, if it has any.
func (a *agent) datastoreReports() []*v1.DatastoreReport {
	if a.stores == nil {
		return nil
	}
	return a.stores.report()
}
