// Command probe is a runtime or an extension that does what a script beside it
// says; package environmenttest builds it for drivers that run real programs.
package main

import "github.com/lambdad/lambdad/environment/environmenttest"

func main() { environmenttest.Main() }
