// Package files reads single files of restore points, through a helper VM.
//
// # Purpose
//
// The disks of a point are lent over NBD to a small VM without a network, which mounts their file systems and answers in the protocol of
// docs/formats/helper.md. It works in a host's agent and in the command line alike: all it needs is QEMU, the helper's image and a backup.PointReader.
//
// # Main types
//
//   - Session: an open point. Open, Volumes, List, Stat, Read, Download, Close.
//   - Keeper: sessions by key, each ended when nobody has asked for a while.
//   - Unpack: an archive's files in a directory, and nowhere else.
//
// # Invariants
//
//   - Nothing of a guest's disks is mounted or parsed in this process or its kernel.
//   - A write of the helper never reaches the point.
//   - What the helper says never takes more memory than a page of a listing, nor decides where something is written here.
//   - Read never ends without error unless all bytes of the file were written.
//   - A helper never outlives its session or this process.
//
// # Lock order
//
// Keeper.mu and Session.mu are leaves; no I/O is done under them. Session.starting (one place) is held while a helper starts.
//
// # Not here
//
// The helper's own program (osimage/helperinit), who may browse what (host, manager).
package files
