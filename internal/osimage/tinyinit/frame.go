package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Frames by hand: a guest that behaves badly, and one that listens to what is not its own.

const (
	allProtocols    = 0x0300 // ETH_P_ALL, network order
	addMembership   = 1      // PACKET_ADD_MEMBERSHIP, linux/if_packet.h
	promiscuousMode = 1      // PACKET_MR_PROMISC
	outgoing        = 4      // PACKET_OUTGOING
	keptBytes       = 64
)

// packetSocket opens a socket for whole frames on a NIC.
func packetSocket(q query) (fd int, nic *net.Interface, err error) {
	name := q.str("nic")
	if name == "" {
		name = "eth0"
	}
	if nic, err = net.InterfaceByName(name); err != nil {
		return 0, nil, fmt.Errorf("nic %s: %v", name, err)
	}
	if fd, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, allProtocols); err != nil {
		return 0, nil, fmt.Errorf("socket for frames: %v", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: allProtocols, Ifindex: nic.Index}); err != nil {
		syscall.Close(fd)
		return 0, nil, fmt.Errorf("bind to %s: %v", name, err)
	}
	return fd, nic, nil
}

// sendFrames sends the frame hex count times. random names addresses that are new in each: "src", "dst" or "src,dst".
func sendFrames(q query) (any, error) {
	frame, err := hex.DecodeString(q.str("hex"))
	if err != nil || len(frame) < 14 || len(frame) > 9000 {
		return nil, fmt.Errorf("hex=…: want a frame of 14 to 9000 bytes")
	}
	count, err := q.num("count", 1)
	if err != nil {
		return nil, err
	}
	fd, nic, err := packetSocket(q)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	random := q.str("random")
	sent, failed := 0, 0
	for range min(count, 1_000_000) {
		if strings.Contains(random, "dst") {
			rand.Read(frame[:6])
			frame[0] = frame[0]&^1 | 2
		}
		if strings.Contains(random, "src") {
			rand.Read(frame[6:12])
			frame[6] = frame[6]&^1 | 2
		}
		if err := syscall.Sendto(fd, frame, 0, &syscall.SockaddrLinklayer{Ifindex: nic.Index, Halen: 6}); err != nil {
			failed++ // the queue is full: a flood goes on
			continue
		}
		sent++
	}
	return map[string]any{"sent": sent, "failed": failed}, nil
}

// watchFrames tells what arrives at a NIC in ms milliseconds, with other=1 only unicast frames to other stations. The NIC is promiscuous meanwhile.
func watchFrames(q query) (any, error) {
	ms, err := q.num("ms", 1000)
	if err != nil {
		return nil, err
	}
	fd, nic, err := packetSocket(q)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	// struct packet_mreq: index, type, length of address, address.
	mreq := struct {
		index      int32
		kind, alen uint16
		addr       [8]byte
	}{int32(nic.Index), promiscuousMode, 0, [8]byte{}}
	_, _, e := syscall.Syscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), syscall.SOL_PACKET, addMembership, uintptr(unsafe.Pointer(&mreq)), unsafe.Sizeof(mreq), 0)
	if e != 0 {
		return nil, fmt.Errorf("set %s promiscuous: %v", nic.Name, e)
	}
	tv := syscall.NsecToTimeval(int64(50 * time.Millisecond))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv); err != nil {
		return nil, err
	}
	count, kept := 0, []string{}
	buf := make([]byte, 9100)
	for end := time.Now().Add(time.Duration(min(ms, 60_000)) * time.Millisecond); time.Now().Before(end); {
		n, from, err := syscall.Recvfrom(fd, buf, 0)
		if err != nil || n < 14 {
			continue
		}
		if ll, ok := from.(*syscall.SockaddrLinklayer); ok && ll.Pkttype == outgoing {
			continue
		}
		if q.str("other") != "" && (buf[0]&1 != 0 || string(buf[:6]) == string(nic.HardwareAddr)) {
			continue
		}
		if count++; len(kept) < 100 {
			kept = append(kept, hex.EncodeToString(buf[:min(n, keptBytes)]))
		}
	}
	return map[string]any{"count": count, "frames": kept}, nil
}
