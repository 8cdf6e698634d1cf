// Package backend holds what can be chosen, and how: backends, groups of them, and balancers.
package backend
