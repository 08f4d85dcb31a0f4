package qmp

import "context"

// Screendump writes the screen to a file, which QEMU opens: normally a
// /dev/fdset/N with a descriptor that is write-only. format is "ppm" or "png" (QEMU ≥ 7.1).
func (c *Client) Screendump(ctx context.Context, filename, format string) error {
	return c.Execute(ctx, "screendump", obj{"filename": filename, "format": format}, nil)
}

// VNC is the state of the VNC server.
type VNC struct {
	Enabled bool   `json:"enabled"`
	Host    string `json:"host"`
	Family  string `json:"family"`
	Service string `json:"service"`
	Auth    string `json:"auth"`
	Clients []struct {
		Host    string `json:"host"`
		Service string `json:"service"`
	} `json:"clients"`
}

// QueryVNC reads the state of the VNC server.
func (c *Client) QueryVNC(ctx context.Context) (VNC, error) {
	var out VNC
	err := c.Execute(ctx, "query-vnc", nil, &out)
	return out, err
}

// SocketAddress is where QEMU listens or connects to. Type "unix" uses Path, "inet"
// Host and Port, "fd" Str: the name from GetFD.
type SocketAddress struct {
	Type string
	Path string
	Host string
	Port string
	Str  string
}

// legacy is the nested form that nbd-server-start wants.
func (a SocketAddress) legacy() obj {
	data := obj{}
	switch a.Type {
	case "unix":
		data["path"] = a.Path
	case "inet":
		data["host"], data["port"] = a.Host, a.Port
	case "fd":
		data["str"] = a.Str
	}
	return obj{"type": a.Type, "data": data}
}

// NBDServerStart starts QEMU's NBD server. tlsCreds is the id of a tls-creds
// object, or empty. maxConnections 0 is no limit.
func (c *Client) NBDServerStart(ctx context.Context, addr SocketAddress, tlsCreds string, maxConnections int) error {
	args := obj{"addr": addr.legacy()}
	if tlsCreds != "" {
		args["tls-creds"] = tlsCreds
	}
	if maxConnections > 0 {
		args["max-connections"] = maxConnections
	}
	return c.Execute(ctx, "nbd-server-start", args, nil)
}

// NBDServerStop stops the NBD server and drops its clients and exports.
func (c *Client) NBDServerStop(ctx context.Context) error {
	return c.Execute(ctx, "nbd-server-stop", nil, nil)
}

// NBDExport is an export of the NBD server.
type NBDExport struct {
	ID       string `json:"id"`
	Node     string `json:"node-name"`
	Name     string `json:"name,omitempty"` // default: Node
	Writable bool   `json:"writable"`
	// Bitmaps are shown as meta contexts "qemu:dirty-bitmap:NAME". One of a node that is exported for reading must not record.
	Bitmaps []BitmapName `json:"bitmaps,omitempty"`
}

// NBDExportAdd exports a node.
func (c *Client) NBDExportAdd(ctx context.Context, e NBDExport) error {
	return c.Execute(ctx, "block-export-add", struct {
		Type string `json:"type"`
		NBDExport
	}{"nbd", e}, nil)
}

// ExportDel removes an export; hard drops its clients. It is gone at
// EventBlockExportDeleted.
func (c *Client) ExportDel(ctx context.Context, id string, hard bool) error {
	mode := "safe"
	if hard {
		mode = "hard"
	}
	return c.Execute(ctx, "block-export-del", obj{"id": id, "mode": mode}, nil)
}
