package files

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
)

// Message is the volume as the API tells of it.
func (v Volume) Message() *v1.FileEntry {
	return &v1.FileEntry{Name: v.Name, Type: "volume", Size: v.Size, Filesystem: v.Filesystem, Label: v.Label, Place: v.Place, Note: v.Note}
}

// Message is the file as the API tells of it, with names as text.
func (e Entry) Message() *v1.FileEntry {
	return &v1.FileEntry{
		Name: Show(e.Name), Type: e.Type, Size: e.Size, Modified: timestamppb.New(e.Modified), Mode: e.Mode, Uid: e.UID, Gid: e.GID, Target: Show(e.Target),
	}
}
