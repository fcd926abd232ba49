//go:build integration || torture

package nfs

import "pagewright/storage/test/vm"

// asItIs is the service itself.
var asItIs = vm.Variant{Name: "as it is"}

// plainRename is the service that renames a replacement over the file, as it
// does on a local file system.
var plainRename = vm.Variant{Name: "plain rename", Broken: true, Edits: []vm.Edit{
	vm.Replace("nfs_replace.go", `if !n.remote || lock == nil {`, `if true || lock == nil {`),
}}
