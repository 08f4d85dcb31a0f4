package hostnet

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Sender sends whole Ethernet frames to links of one namespace. It may be used from several goroutines. Close it.
type Sender struct{ f *os.File }

// OpenSender makes a sender whose frames carry mark as skb->mark; 0: none. The switch lets only frames with its own mark out to a port.
func (n *Net) OpenSender(mark uint32) (*Sender, error) {
	var fd int
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // protocol 0: it receives nothing
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket for frames in namespace %q: %w", n.name, err)
	}
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return nil, errors.Join(fmt.Errorf("mark frames in namespace %q: %w", n.name, err), unix.Close(fd))
		}
	}
	return &Sender{os.NewFile(uintptr(fd), "packet")}, nil
}

// Send queues a frame, header and all, on a link. A tag is part of the frame. ENXIO or ENODEV says that the link is gone, ENETDOWN that it
// is down, ENOBUFS that a queue or a program dropped the frame.
func (s *Sender) Send(ifindex int, frame []byte) error {
	rc, err := s.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("send a frame to link %d: %w", ifindex, err)
	}
	var sendErr error
	err = rc.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), frame, 0, &unix.SockaddrLinklayer{Ifindex: ifindex})
		return true // a full queue loses the frame: nobody waits for it
	})
	if err = errors.Join(err, sendErr); err != nil {
		return fmt.Errorf("send a frame of %d bytes to link %d: %w", len(frame), ifindex, err)
	}
	return nil
}

// Close ends the sender.
func (s *Sender) Close() error { return s.f.Close() }
