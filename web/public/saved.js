// Starts a page that was saved as a single file: its style and its script are compressed with gzip, in Base64.
(async () => {
  try {
    for (const name of ["style", "script"]) {
      const text = document.getElementById(`packed-${name}`).textContent;
      const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      const element = document.createElement(name);
      element.textContent = await new Response(stream).text();
      document.head.append(element);
    }
  } catch (error) {
    document.body.textContent = `This browser cannot show the saved page: ${error}`;
  }
})();
