package lab

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// WAN is what a link between two sites does to packets, the same in both
// directions. The zero value passes everything at once.
type WAN struct {
	Delay  time.Duration `json:"delay"`  // one way
	Jitter time.Duration `json:"jitter"` // the delay varies by up to this, both ways, evenly; packets keep their order
	Loss   float64       `json:"loss"`   // chance that a packet is lost, 0 to 1
	// Bandwidth is in bits of IP packets a second; 0: no limit.
	Bandwidth int64 `json:"bandwidth"`
	// Queue is how long a packet may wait for the bandwidth before it is dropped
	// instead; 0: 100 ms.
	Queue time.Duration `json:"queue"`
	Cut   bool          `json:"cut"` // nothing passes, and what is on its way is lost; the ends aren't told
}

const (
	maxDelay     = 10 * time.Second
	defaultQueue = 100 * time.Millisecond
	minBandwidth = 8_000
	// gsoBandwidth is from where on a limited link passes segments uncut: 64 KB
	// then take 1 ms at most, and packets one by one would not fill it: the
	// daemon passes some 60,000 of them a second.
	gsoBandwidth = 500_000_000
)

// Validate checks the ranges.
func (w WAN) Validate() error {
	var errs []error
	for what, d := range map[string]time.Duration{"delay": w.Delay, "jitter": w.Jitter, "queue": w.Queue} {
		if d < 0 || d > maxDelay {
			errs = append(errs, fmt.Errorf("WAN %s %v: want 0 to %v", what, d, maxDelay))
		}
	}
	if !(w.Loss >= 0 && w.Loss <= 1) {
		errs = append(errs, fmt.Errorf("WAN loss %v: want 0 to 1", w.Loss))
	}
	if w.Bandwidth != 0 && w.Bandwidth < minBandwidth || w.Bandwidth > 1e12 {
		errs = append(errs, fmt.Errorf("WAN bandwidth %d: want 8 kbit/s to 1 Tbit/s, or 0 for no limit", w.Bandwidth))
	}
	return errors.Join(errs...)
}

func (w *WAN) queue() time.Duration {
	if w.Queue == 0 {
		return defaultQueue
	}
	return w.Queue
}

// immediate says that packets need not be held.
func (w *WAN) immediate() bool { return w.Delay == 0 && w.Jitter == 0 && w.Bandwidth == 0 }

// wholeSegments says whether segments may pass uncut: not if packets are to be
// lost or spaced one by one.
func (w *WAN) wholeSegments() bool {
	return w.Loss == 0 && w.Jitter == 0 && (w.Bandwidth == 0 || w.Bandwidth >= gsoBandwidth)
}

// WANChange changes the fields that are set, on one link or on all.
type WANChange struct {
	Link      string         `json:"link,omitempty"` // empty: every link
	Delay     *time.Duration `json:"delay,omitempty"`
	Jitter    *time.Duration `json:"jitter,omitempty"`
	Loss      *float64       `json:"loss,omitempty"`
	Bandwidth *int64         `json:"bandwidth,omitempty"`
	Queue     *time.Duration `json:"queue,omitempty"`
	Cut       *bool          `json:"cut,omitempty"`
}

func (ch WANChange) apply(w WAN) WAN {
	set(&w.Delay, ch.Delay)
	set(&w.Jitter, ch.Jitter)
	set(&w.Loss, ch.Loss)
	set(&w.Bandwidth, ch.Bandwidth)
	set(&w.Queue, ch.Queue)
	set(&w.Cut, ch.Cut)
	return w
}

func set[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}

// ParseLoss reads "1%" or "0.01".
func ParseLoss(s string) (float64, error) {
	num, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(num, 64)
	if percent {
		v /= 100
	}
	if err != nil || math.IsNaN(v) || v < 0 || v > 1 {
		return 0, fmt.Errorf("loss %q: want 0%% to 100%%", s)
	}
	return v, nil
}

// ParseBandwidth reads bits a second: "100M", "1.5G", "64k", "0" for no limit.
func ParseBandwidth(s string) (int64, error) {
	num, unit := s, 1.0
	if s != "" {
		switch s[len(s)-1] {
		case 'k', 'K':
			unit = 1e3
		case 'm', 'M':
			unit = 1e6
		case 'g', 'G':
			unit = 1e9
		}
		if unit != 1 {
			num = s[:len(s)-1]
		}
	}
	v, err := strconv.ParseFloat(num, 64)
	v *= unit
	if err != nil || math.IsNaN(v) || v != 0 && v < minBandwidth || v > 1e12 {
		return 0, fmt.Errorf("bandwidth %q: want bits a second, 8k to 1000G, or 0 for no limit", s)
	}
	return int64(v), nil
}
