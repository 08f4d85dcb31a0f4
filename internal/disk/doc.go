// Package disk keeps the disks of VMs in a datastore, which is a directory.
//
// # Purpose
//
// Images are cached once, read-only, by the SHA-256 of their bytes. A VM's disk is a chain of files, its layers: the
// active one on top, frozen ones below, perhaps an image at the bottom. Snapshots and linked clones hold on to layers;
// what nobody holds is dropped or merged. A restored disk is filled apart, and takes the place of the old one at one moment;
// one that is used before it is whole stands on a remote base.
//
// # Layout
//
//	.lock                       held (flock) while a Store is open
//	images/SHA256.qcow2|.iso    read-only, bytes match the name
//	tmp/                        unfinished work; emptied on Open but for partial downloads
//	vms/UID/layers.json         the manifest: the only truth about the VM's layers
//	vms/UID/ID.qcow2|.raw       layers
//	vms/UID/SNAPSHOT.mem        memory of a snapshot
//
// # Main types
//
// Store is an open datastore; Chain gives a disk's Layers from the active one down; Merge is what remains to be folded
// after a snapshot went; Fresh is a disk that is being filled.
//
// # Invariants
//
// A layer's header never names another file: what lies below what is known by the manifest alone.
// A frozen layer's visible content never changes while a snapshot, clone or child can see it.
// A file is never removed before the manifest that forgets it is on the platter; a file that no manifest knows is
// swept on Open.
// After a kill at any point the content of each disk is what it was before the operation or after it.
// No name from a user or an image becomes a path: VMs and layers are named by checked IDs, below an os.Root.
// A size never shrinks.
//
// # Lock order
//
// Store.op(vm) (a VM's operations one after another, held over I/O) before Store.mu (which guards only the maps).
// References between VMs change under Store.cross, between the two.
//
// # Not here
//
// What runs on disks (qemu), the import of images (disk/library), parsing of image headers (disk/inspect).
package disk
