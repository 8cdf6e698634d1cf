package main

import "github.com/spf13/cobra"

func forwardCommand() *cobra.Command { return &cobra.Command{Use: "forward", Hidden: true} }
func demoCommand() *cobra.Command    { return &cobra.Command{Use: "demo", Hidden: true} }
