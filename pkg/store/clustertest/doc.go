// Package clustertest runs the store against a cluster of three etcd
// processes, to kill and to pause them. It is tests and nothing else, apart
// from those of pkg/store because building etcd takes its time.
package clustertest
