import java.awt.image.BufferedImage;
import java.io.File;
import java.io.IOException;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ServiceLoader;
import javax.imageio.ImageIO;
import qupath.lib.images.servers.ImageServer;
import qupath.lib.images.servers.ImageServerBuilder;
import qupath.lib.images.servers.ImageServerBuilder.DefaultImageServerBuilder;
import qupath.lib.images.servers.ImageServerBuilder.ServerBuilder;
import qupath.lib.images.servers.ImageServerBuilder.UriImageSupport;
import qupath.lib.images.servers.ImageServerMetadata;
import qupath.lib.images.servers.ImageServerProvider;
import qupath.lib.images.servers.ImageServers;
import qupath.lib.images.servers.WrappedBufferedImageServer;
import qupath.lib.io.GsonTools;
import qupath.lib.regions.RegionRequest;

/**
 * Prints what QuPath makes of server builders, and saves the pixels that it shows.
 *
 * Arguments: a list, and the pixel size in µm (width, height) that all files have that are read by the reader in here.
 * Each line of the list is: builder.json, x, y, width, height, picture.png, with tabs between; a width of 0 means the whole
 * image. For each line it prints width, height and pixel size of the image, or "!" and why it cannot be opened.
 *
 * The reader needs META-INF/services/qupath.lib.images.servers.ImageServerBuilder on the class path, naming it.
 */
public class ShownPixels {

    private static double pixelWidth;
    private static double pixelHeight;

    public static void main(String[] args) throws Exception {
        pixelWidth = Double.parseDouble(args[1]);
        pixelHeight = Double.parseDouble(args[2]);
        ImageServerProvider.setServiceLoader(
                ServiceLoader.load(ImageServerBuilder.class, ShownPixels.class.getClassLoader()));
        ImageServers.getServerBuilderFactory(); // makes QuPath know the types of builders
        for (String line : Files.readAllLines(Path.of(args[0])))
            System.out.println("SHOWN\t" + describe(line.split("\t")));
    }

    @SuppressWarnings("unchecked")
    private static String describe(String[] wanted) {
        try {
            String json = Files.readString(Path.of(wanted[0]));
            ServerBuilder<BufferedImage> builder = GsonTools.getInstance().fromJson(json, ServerBuilder.class);
            try (ImageServer<BufferedImage> server = builder.build()) {
                save(server, wanted);
                var size = server.getPixelCalibration();
                return server.getWidth() + "\t" + server.getHeight()
                        + "\t" + size.getPixelWidthMicrons() + "\t" + size.getPixelHeightMicrons();
            }
        } catch (Exception e) {
            return "!\t" + e;
        }
    }

    private static void save(ImageServer<BufferedImage> server, String[] wanted) throws IOException {
        int width = Integer.parseInt(wanted[3]);
        int height = Integer.parseInt(wanted[4]);
        boolean whole = width == 0;
        RegionRequest request = RegionRequest.createInstance(server.getPath(), 1.0,
                Integer.parseInt(wanted[1]), Integer.parseInt(wanted[2]),
                whole ? server.getWidth() : width, whole ? server.getHeight() : height);
        ImageIO.write(rgb(server.readRegion(request)), "PNG", new File(wanted[5]));
    }

    /** The type that QuPath's readers of slides give; others take another way through its affine transforms. */
    private static BufferedImage rgb(BufferedImage image) {
        BufferedImage rgb = new BufferedImage(image.getWidth(), image.getHeight(), BufferedImage.TYPE_INT_RGB);
        rgb.createGraphics().drawImage(image, 0, 0, null);
        return rgb;
    }

    /** Reads what Java itself can read, so that no extension of QuPath is needed. */
    public static class Reader implements ImageServerBuilder<BufferedImage> {

        @Override
        public UriImageSupport<BufferedImage> checkImageSupport(URI uri, String... args) {
            return UriImageSupport.createInstance(Reader.class, 1f,
                    DefaultImageServerBuilder.createInstance(Reader.class, uri, args));
        }

        @Override
        public ImageServer<BufferedImage> buildServer(URI uri, String... args) throws IOException {
            return new WrappedBufferedImageServer(uri.toString(), rgb(ImageIO.read(new File(uri)))) {
                @Override
                public ImageServerMetadata getOriginalMetadata() {
                    ImageServerMetadata known = super.getOriginalMetadata();
                    return known == null ? null
                            : new ImageServerMetadata.Builder(known).pixelSizeMicrons(pixelWidth, pixelHeight).build();
                }
            };
        }

        @Override
        public String getName() {
            return "Java";
        }

        @Override
        public String getDescription() {
            return "Reads what Java itself can read";
        }

        @Override
        public Class<BufferedImage> getImageType() {
            return BufferedImage.class;
        }
    }
}
