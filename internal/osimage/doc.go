// Package osimage builds guest images from Debian packages.
//
// # Purpose
//
// `drover image build tiny` makes a kernel image that boots in about two seconds without KVM and answers a test's questions;
// `drover image build debian` makes a Debian 12 cloud image; `drover image build helper` the VM that reads files of restore points. All use the machine's own apt configuration, so they work wherever apt works.
//
// # Main types
//
//   - Options: where builds are kept, who hears of progress.
//   - Tiny, Debian, Helper: what to build. Result: the file.
//   - MissingError: a tool or package that the machine lacks, and how to get it.
//
// # Invariants
//
//   - A file under Result.Path never changes and is never incomplete: it is renamed into place when it is whole.
//   - A failed or cancelled build leaves nothing but downloaded packages.
//   - Nothing of the building machine is in an image: no proxies, mirrors, keys, machine-id, host names or passwords.
//   - The same packages and recipe never build twice in one cache directory.
//
// # Lock order
//
// A build holds one file lock, of its own key, in the cache directory.
//
// # Not here
//
// The kernel image's format (kernelimage), what runs in the tiny guest (tinyinit) and in the helper (helperinit), storing images (the image library).
package osimage
