//! Network namespaces: entered by guard or by thread, never by global state.
