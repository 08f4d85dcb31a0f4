package host

import (
	"context"

	"drover/internal/vswitch/table"
)

// listen reads what the datapath tells, until ctx ends. Frames never wait for this.
func (f *fabric) listen(ctx context.Context) {
	dp := f.dp
	f.parts.Go(func() {
		err := dp.Events(ctx, func(e *table.Event) {
			x := *e
			f.hear(func() { f.event(&x) })
		})
		if err != nil && ctx.Err() == nil {
			f.log.Error("the datapath's events can't be read", "err", err)
		}
	})
	f.parts.Go(func() {
		err := dp.Punts(ctx, func(p *table.Punt) {
			x := *p
			f.hear(func() { f.punt(&x) })
		})
		if err != nil && ctx.Err() == nil {
			f.log.Error("the datapath's punted frames can't be read", "err", err)
		}
	})
}

// hear hands news to the fabric's goroutine. When that is behind, news are lost, as a full ring loses them.
func (f *fabric) hear(news func()) {
	select {
	case f.heard <- news:
	default:
	}
}

func (f *fabric) event(*table.Event) {}

func (f *fabric) punt(*table.Punt) {}
