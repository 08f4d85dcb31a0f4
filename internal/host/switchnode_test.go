package host

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/pcapng"
	"drover/internal/vswitch/table"
)

// A capture ends when its time is over or when its reader has gone, also when there was no frame.
func TestCaptureEnds(t *testing.T) {
	for _, most := range []int64{0, 1} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		var lost atomic.Int64
		var sent []*v1.CapturePortResponse
		ended := make(chan error, 1)
		go func() {
			ended <- pump(ctx, pcapng.New(pcapng.Options{}), &place{}, &nicPort{ifindex: 3}, map[table.CapturePoint]bool{table.CaptureFromGuest: true}, make(chan *table.Capture), &lost, most, func(r *v1.CapturePortResponse) error {
				sent = append(sent, r)
				return nil
			})
		}()
		select {
		case err := <-ended:
			if err != nil || len(sent) != 2 {
				t.Errorf("at most %d: %v after %d messages, want the header and the statistics", most, err, len(sent))
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("at most %d: the capture goes on", most)
		}
	}
}
