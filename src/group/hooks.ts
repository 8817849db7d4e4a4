/** Functions to be called when something has happened. Owns the set; must not know what happens. */
export class Hooks {
  private readonly hooks = new Set<() => void>();

  /** Returns what removes it. */
  add(hook: () => void): () => void {
    this.hooks.add(hook);
    return () => void this.hooks.delete(hook);
  }

  run(): void {
    for (const hook of this.hooks) hook();
  }
}
