package host

import (
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/internal/clock"
)

// eventLimit bounds what is kept for a manager that is away; the oldest go first.
const eventLimit = 1000

// events queues what happened until the manager has it.
type events struct {
	clk clock.Clock

	mu    sync.Mutex
	queue []*v1.Event
	first int // number of the queue's first event since the start
}

func (e *events) add(severity v1.Severity, kind, name, reason, message string) {
	ev := &v1.Event{
		Time: timestamppb.New(e.clk.Now()), Severity: severity, Kind: kind, Name: name, Reason: reason, Message: message,
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue = append(e.queue, ev)
	if over := len(e.queue) - eventLimit; over > 0 {
		e.queue = append([]*v1.Event(nil), e.queue[over:]...)
		e.first += over
	}
}

// take returns up to n events and the mark to give to sent when they have arrived.
func (e *events) take(n int) ([]*v1.Event, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n = min(n, len(e.queue))
	return append([]*v1.Event(nil), e.queue[:n]...), e.first + n
}

func (e *events) sent(mark int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := mark - e.first; n > 0 {
		e.queue = append([]*v1.Event(nil), e.queue[min(n, len(e.queue)):]...)
		e.first = mark
	}
}
