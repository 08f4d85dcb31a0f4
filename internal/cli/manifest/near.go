package manifest

import "google.golang.org/protobuf/reflect/protoreflect"

// nearest is the field whose name is a slip or two away from what was written; empty if none is.
func nearest(s string, d protoreflect.MessageDescriptor) string {
	best, at := "", 3
	for i := range d.Fields().Len() {
		name := string(d.Fields().Get(i).Name())
		if n := distance(s, name); n < at && n < len(name) {
			best, at = name, n
		}
	}
	return best
}

// distance is Levenshtein's, for names of a sane length.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
