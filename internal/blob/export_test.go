package blob

// Leftovers returns what is under tmp.
func (d *Dir) Leftovers() ([]string, error) {
	root, err := d.open(false)
	if err != nil {
		return nil, err
	}
	entries, err := root.ReadDir(tmpDir)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name)
	}
	return out, err
}

// OpenFiles is how many objects are kept open.
func (d *Dir) OpenFiles() int {
	d.files.mu.Lock()
	defer d.files.mu.Unlock()
	return d.files.lru.Len()
}
