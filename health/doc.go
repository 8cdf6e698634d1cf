// Package health decides which backends are up.
package health
