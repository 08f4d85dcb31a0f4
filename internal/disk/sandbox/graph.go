package sandbox

import (
	"encoding/json"
	"fmt"
)

// Node is one image in a chain: files[File] of Run, read with the driver Format, over Backing or over nothing.
type Node struct {
	File    int
	Format  string
	Offset  int64 // raw only: a window of the file
	Size    int64
	Backing *Node
}

// Filename is the graph as a qemu-img file name. Backing is always stated, so that nothing named in a header is opened.
func (n *Node) Filename() string {
	b, err := json.Marshal(n.options())
	if err != nil {
		panic(fmt.Sprintf("marshal a block graph: %v", err)) // strings and numbers only
	}
	return "json:" + string(b)
}

func (n *Node) options() map[string]any {
	o := map[string]any{
		"driver": n.Format,
		"file":   map[string]any{"driver": "file", "filename": FD(n.File)},
	}
	if n.Format == "raw" {
		if n.Size > 0 {
			o["offset"], o["size"] = n.Offset, n.Size
		}
		return o
	}
	if n.Size > 0 {
		o["file"] = map[string]any{"driver": "raw", "offset": n.Offset, "size": n.Size,
			"file": map[string]any{"driver": "file", "filename": FD(n.File)}}
	}
	if n.Format == "vpc" {
		o["force_size_calc"] = "current_size" // as the footer says, not rounded to cylinders
	}
	switch {
	case n.Backing != nil:
		o["backing"] = n.Backing.options()
	case n.Format == "qcow2" || n.Format == "vmdk":
		o["backing"] = nil
	}
	return o
}
