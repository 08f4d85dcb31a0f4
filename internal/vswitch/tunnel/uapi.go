package tunnel

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// state is a device as it says of itself.
type state struct {
	key   Key
	port  int
	peers map[Key]*peerState
}

type peerState struct {
	endpoint  netip.AddrPort
	handshake time.Time
	rx, tx    uint64
}

// dial connects to the process; ctx ends also what is under way on the connection.
func dial(ctx context.Context, socket string) (net.Conn, func(), error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return c, func() { stop(); c.Close() }, nil
}

// ask sends one operation and returns the lines of the answer.
func ask(ctx context.Context, socket, operation string) (lines [][2]string, err error) {
	c, done, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := c.Write([]byte(operation)); err != nil {
		return nil, err
	}
	s := bufio.NewScanner(c)
	for s.Scan() {
		k, v, _ := strings.Cut(s.Text(), "=")
		if k != "errno" {
			lines = append(lines, [2]string{k, v})
			continue
		}
		if n, err := strconv.Atoi(v); err != nil || n != 0 {
			if n < 0 {
				n = -n
			}
			return nil, fmt.Errorf("the tunnel refused: %w", unix.Errno(n))
		}
		return lines, nil
	}
	return nil, fmt.Errorf("the tunnel hung up: %w", s.Err())
}

func parseKeyHex(s string) (k Key, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, fmt.Errorf("key of %d digits", len(s))
	}
	copy(k[:], b)
	return k, nil
}

// parseState reads the answer to get.
func parseState(lines [][2]string) (state, error) {
	st := state{peers: map[Key]*peerState{}}
	var p *peerState
	var sec, nsec int64
	for _, l := range lines {
		var err error
		switch k, v := l[0], l[1]; k {
		case "private_key":
			st.key, err = parseKeyHex(v)
		case "listen_port":
			st.port, err = strconv.Atoi(v)
		case "public_key":
			var key Key
			if key, err = parseKeyHex(v); err == nil {
				p, sec, nsec = &peerState{}, 0, 0
				st.peers[key] = p
			}
		default:
			if p == nil {
				continue
			}
			switch k {
			case "endpoint":
				p.endpoint, err = netip.ParseAddrPort(v)
			case "rx_bytes":
				p.rx, err = strconv.ParseUint(v, 10, 64)
			case "tx_bytes":
				p.tx, err = strconv.ParseUint(v, 10, 64)
			case "last_handshake_time_sec":
				sec, err = strconv.ParseInt(v, 10, 64)
			case "last_handshake_time_nsec":
				nsec, err = strconv.ParseInt(v, 10, 64)
				if sec > 0 {
					p.handshake = time.Unix(sec, nsec)
				}
			}
		}
		if err != nil {
			return st, fmt.Errorf("tunnel says %s=%s: %w", l[0], l[1], err)
		}
	}
	return st, nil
}

// change is the operation that brings a device from what it is to what it should be; peers that stay keep their sessions.
// told has the endpoints that were set before: a peer that moved since (behind a NAT) is left where it answered from.
func change(now state, want Config, told map[Key]netip.AddrPort) string {
	var b strings.Builder
	b.WriteString("set=1\n")
	if now.key != want.Key {
		fmt.Fprintf(&b, "private_key=%x\n", want.Key[:])
	}
	if now.port != want.Port {
		fmt.Fprintf(&b, "listen_port=%d\n", want.Port)
	}
	keep := map[Key]bool{}
	for _, p := range want.Peers {
		keep[p.Key] = true
		fmt.Fprintf(&b, "public_key=%x\nreplace_allowed_ips=true\nallowed_ip=%s/%d\npersistent_keepalive_interval=%d\n",
			p.Key[:], p.Address, p.Address.BitLen(), int(Keepalive/time.Second))
		if now.peers[p.Key] == nil || told[p.Key] != p.Endpoint {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(now.peers), func(a, b Key) int { return slices.Compare(a[:], b[:]) }) {
		if !keep[k] {
			fmt.Fprintf(&b, "public_key=%x\nremove=true\n", k[:])
		}
	}
	b.WriteString("\n")
	return b.String()
}
